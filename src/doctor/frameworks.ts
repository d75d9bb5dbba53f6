/** The frameworks that an application and this package would load, and what they say when they are loaded. */
import { type Dirent, existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { performance } from 'node:perf_hooks';

export const ORT = 'onnxruntime-node';
/** In the order of preference. */
export const TFJS = ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node', '@tensorflow/tfjs'] as const;

export interface FoundPackage {
  readonly name: string;
  readonly version: string;
  /** Its folder, links followed. */
  readonly folder: string;
  /** What require() loads. */
  readonly entry: string;
}

export interface FoundFrameworks {
  /** What require() finds from the first folder that has it. */
  readonly resolved: readonly FoundPackage[];
  /** Every copy in the folders of modules that lie above the folders, by name. */
  readonly copies: Readonly<Record<string, readonly string[]>>;
  /** The search ended before it had seen all. */
  readonly cut: boolean;
}

/** A search that takes longer ends with what it has. */
const SEARCH_MS = 5000;
const NAMES: readonly string[] = [ORT, ...TFJS];

export function findFrameworks(folders: readonly string[]): FoundFrameworks {
  const resolved = new Map<string, FoundPackage>();
  const copies: Record<string, Set<string>> = Object.fromEntries(NAMES.map((name) => [name, new Set<string>()]));
  for (const folder of folders) {
    for (const name of NAMES) {
      const found = resolveFrom(folder, name);
      if (!found) continue;
      copies[name]!.add(found.folder);
      if (!resolved.has(name)) resolved.set(name, found);
    }
  }
  const until = performance.now() + SEARCH_MS;
  const seen = new Set<string>();
  let cut = false;
  for (const folder of folders) {
    for (let at = folder; dirname(at) !== at; at = dirname(at)) cut ||= !search(join(at, 'node_modules'));
  }
  return {
    resolved: [...resolved.values()],
    copies: Object.fromEntries(Object.entries(copies).map(([name, paths]) => [name, [...paths].sort()])),
    cut,
  };

  /** Notes the packages in a folder of modules, and in those of its packages; false when time is over. */
  function search(modules: string): boolean {
    if (seen.has(modules)) return true;
    seen.add(modules);
    for (const entry of entriesOf(modules)) {
      if (performance.now() > until) return false;
      const path = join(modules, entry.name);
      if (entry.name === '.pnpm') {
        for (const { name } of entriesOf(path)) {
          // As onnxruntime-node@1.20.0 or @tensorflow+tfjs@4.22.0(…): each has node_modules with its package.
          const of = NAMES.find((framework) => name.startsWith(`${framework.replace('/', '+')}@`));
          if (of) note(join(path, name, 'node_modules', of), of);
        }
      } else if (entry.name.startsWith('@')) {
        for (const inner of entriesOf(path))
          if (!look(join(path, inner.name), `${entry.name}/${inner.name}`, inner)) return false;
      } else if (!entry.name.startsWith('.') && !look(path, entry.name, entry)) {
        return false;
      }
    }
    return true;
  }

  function look(path: string, name: string, entry: Dirent): boolean {
    if (NAMES.includes(name)) note(path, name);
    return !entry.isDirectory() || search(join(path, 'node_modules'));
  }

  function note(path: string, name: string): void {
    if (existsSync(join(path, 'package.json'))) copies[name]!.add(realpathSync(path));
  }
}

function entriesOf(folder: string): Dirent[] {
  try {
    return readdirSync(folder, { withFileTypes: true });
  } catch {
    return [];
  }
}

function resolveFrom(folder: string, name: string): FoundPackage | undefined {
  try {
    const entry = createRequire(join(folder, 'resolve.js')).resolve(name);
    for (let at = dirname(entry); dirname(at) !== at; at = dirname(at)) {
      const file = join(at, 'package.json');
      if (!existsSync(file)) continue;
      const said = JSON.parse(readFileSync(file, 'utf8')) as { name?: string; version?: string };
      if (said.name === name) return { name, version: said.version ?? '', folder: realpathSync(at), entry };
    }
  } catch {
    // It is not there.
  }
  return undefined;
}

interface Ort {
  listSupportedBackends?(): { name: string }[];
  InferenceSession: {
    create(model: Uint8Array, options: object): Promise<{ release(): Promise<void> }>;
  };
}

/** Loads ONNX Runtime and makes a session with a provider; the names of all that it knows. */
export async function loadOrt(entry: string, provider: string): Promise<string[]> {
  const ort = require(entry) as Ort;
  const names = ort.listSupportedBackends?.().map(({ name }) => name) ?? ['cpu'];
  if (!names.includes(provider)) return names;
  const session = await ort.InferenceSession.create(identityModel(), { executionProviders: [provider] });
  await session.release();
  return names;
}

/** An ONNX model that returns its input, one float. */
function identityModel(): Uint8Array {
  const field = (number: number, content: string | number[]): number[] => {
    const bytes = [...Buffer.from(content as string)];
    return [(number << 3) | 2, bytes.length, ...bytes];
  };
  const value = (number: number, name: string): number[] => {
    const shape = field(2, field(1, [8, 1])); // one dimension of 1
    return field(number, [...field(1, name), ...field(2, field(1, [8, 1, ...shape]))]); // elements of type 1: float
  };
  const node = field(1, [...field(1, 'x'), ...field(2, 'y'), ...field(4, 'Identity')]);
  const graph = [...node, ...field(2, 'identity'), ...value(11, 'x'), ...value(12, 'y')];
  return Uint8Array.from([8, 7, ...field(7, graph), ...field(8, [0x10, 13])]); // IR version 7, operators of version 13
}

interface TensorFlow {
  backend(): { binding?: { TF_Version?: string } };
}

/** Loads TensorFlow.js over libtensorflow; the version of that library. */
export async function loadTensorFlow(entry: string): Promise<string> {
  return (require(entry) as TensorFlow).backend().binding?.TF_Version ?? '';
}
