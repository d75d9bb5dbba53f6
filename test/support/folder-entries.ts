/** What every entry of the package sees in a folder. Models have one weight "w". */
import { fastsafeOpen, ParallelLoader, SafeTensorsFileLoader } from 'fastsafetensors-node';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import type { FileOptions } from '../../src/loaders/options.js';
import { runCli } from './cli.js';
import { externalTensor, floats, model, node, value } from './onnx-model.js';

/** Elements of each tensor. */
export const SIZE = 512;

/** What an entry saw. `w` is a value of the tensor "w" where it reads any. */
export interface Seen {
  names?: string[];
  w?: number;
  notes?: readonly string[];
}

const flags = ({ variant, followLinks }: FileOptions): string[] => [
  ...(variant === undefined ? [] : ['--variant', variant]),
  ...(followLinks === false ? ['--no-follow-links'] : []),
];
/** Runs a command with --json; throws what it reports. */
async function command(...args: string[]) {
  const { stdout, stderr, exitCode } = await runCli(...args, '--json');
  if (stdout === '') throw JSON.parse(stderr).error;
  expect(exitCode).toBe(args[0] === 'verify' && !JSON.parse(stdout).ok ? 1 : 0);
  return JSON.parse(stdout);
}

/** How users give a path, and what each way makes of it. */
export const ENTRIES: Record<string, (files: string, options: FileOptions) => Promise<Seen>> = {
  ParallelLoader: async (files, options) => {
    const loader = new ParallelLoader({ ...options, files });
    const seen: Seen = { names: [] };
    try {
      for await (const [name, tensor] of loader.iterateWeights()) {
        seen.names!.push(name);
        if (name === 'w') seen.w = (await firstOf(await tensor.toHost()))!;
        tensor.dispose();
      }
      return { ...seen, notes: loader.report.notes };
    } finally {
      await loader.close();
    }
  },
  SafeTensorsFileLoader: async (files, options) => {
    const loader = new SafeTensorsFileLoader(options);
    try {
      await loader.addFilenames(files);
      const buffer = await loader.copyFilesToDevice();
      const w = await buffer.getTensor('w');
      const seen = { names: buffer.keys(), w: firstOf(await w.toHost()), notes: loader.report.notes };
      w.dispose();
      await buffer.close();
      return seen;
    } finally {
      await loader.close();
    }
  },
  fastsafeOpen: async (files, options) => {
    const opened = await fastsafeOpen(files, options);
    const w = await opened.getTensor('w');
    const seen = { names: opened.keys(), w: firstOf(await w.toHost()) };
    w.dispose();
    await opened.close();
    return seen;
  },
  createSession: async (files, options) => {
    const add = model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [externalTensor('w', [SIZE], { location: 'gone', offset: '0', length: String(4 * SIZE) })],
      inputs: [value('x', [SIZE])],
      outputs: [value('y', [SIZE])],
    });
    const session = await createSession(ort, add, { ...options, weights: files });
    const { y } = await session.run({ x: new ort.Tensor('float32', floats(SIZE, 0), [SIZE]) });
    const names = ['w', ...session.unmatched.weights];
    await session.release();
    return { names, w: (y!.data as Float32Array)[0] };
  },
  inspect: async (files, options) => {
    const printed = await command('inspect', files, ...flags(options));
    const headers: { tensors: { name: string }[] }[] = printed.files ?? [printed];
    const names = headers.flatMap(({ tensors }) => tensors.map(({ name }) => name));
    return { names, notes: printed.notes ?? [] };
  },
  verify: async (files, options) => {
    const { ok, files: verdicts } = await command('verify', files, ...flags(options));
    if (!ok) throw verdicts.find((verdict: { ok: boolean }) => !verdict.ok);
    return { notes: verdicts.flatMap((verdict: { warnings: string[] }) => verdict.warnings) };
  },
  load: async (files, options) => {
    const { tensors, notes } = await command('load', files, ...flags(options));
    return { names: Array.from({ length: tensors }), notes };
  },
};

function firstOf(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getFloat32(0, true);
}
