/**
 * What doctor() tries in processes of their own: `node probe.js NAME ARGUMENTS` sends { value } or { failure } to its
 * parent and ends.
 */
import { randomBytes } from 'node:crypto';
import { readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { removedAtExit, removedOnSignals } from '../base/temporary.js';
import type { Availability } from '../copiers/availability.js';
import { addonPath, checked, native, settled } from '../native/addon.js';
import type { DeviceInfo } from '../native/core.js';
import { messageOf } from './check.js';
import { type FoundFrameworks, findFrameworks, loadOrt, loadTensorFlow } from './frameworks.js';

const MAX_GPUS = 64;
/** A probed file has at least so many bytes. */
const FILE_BYTES = 4096;

const PROBES = {
  /** The binary that loads here. */
  addon: async () => addonPath(),

  /** What the kernel lets a process do. */
  system: () => settled(native().probeSystem()),

  /** The GPUs that can be opened, in order, and why the next one cannot. */
  async gpus(): Promise<{ gpus: DeviceInfo[]; reason: string }> {
    const gpus: DeviceInfo[] = [];
    try {
      while (gpus.length < MAX_GPUS)
        gpus.push(native().deviceInfo(await settled(native().openDevice(`cuda:${gpus.length}`, false, true))));
      return { gpus, reason: '' };
    } catch (error) {
      return { gpus, reason: messageOf(error) };
    }
  },

  /** Whether cuFile can be used, and where it can, what it makes of a file in a folder. */
  async cufile(folder: string): Promise<Availability & { refused?: string; failed?: string }> {
    // Not for the other probes: they are to begin at once.
    const { copierAvailability } = require('../copiers/registry.js') as typeof import('../copiers/registry.js');
    const { ParallelLoader } =
      require('../loaders/parallel-loader.js') as typeof import('../loaders/parallel-loader.js');
    const { saveFile } = require('../safetensors/save-file.js') as typeof import('../safetensors/save-file.js');
    const found = await copierAvailability('gds', 'cuda:0');
    if (!found.available) return found;
    return withTemporary(join(folder, `${temporaryName()}.safetensors`), async (path) => {
      try {
        await saveFile({ w: { shape: [1 << 20], data: new Uint8Array(1 << 20) } }, path);
        const loader = new ParallelLoader({ files: path, device: 'cuda:0', copier: 'gds' });
        try {
          for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
          const refused = loader.report.fallbacks[0]?.reason;
          return { ...found, ...(refused && { refused }) };
        } finally {
          await loader.close();
        }
      } catch (error) {
        return { ...found, failed: messageOf(error) };
      }
    });
  },

  /** The library of 3FS, and why it does not load. */
  async threeFs(): Promise<{ library: string; failed: string }> {
    const library = checked(() => native().hf3fsLibPath());
    return { library, failed: await settled(native().loadThreeFs()).then(() => '', messageOf) };
  },

  /** The library of NCCL and its version, or why it does not load. */
  nccl: (): Promise<{ library: string; version: string } | { failed: string }> =>
    settled(native().probeNccl()).catch((error) => ({ failed: messageOf(error) })),

  /** Asks the daemon of a mount: the names in it. */
  async mount(point: string): Promise<number> {
    checked(() => native().extractMountPoint(point));
    return (await settled(native().listFolder(point))).names.length;
  },

  /** What can be done with a file of a folder: one that is there, or else one that is written and removed again. */
  async file(folder: string) {
    const there = readdirSync(folder)
      .filter((name) => name.endsWith('.safetensors'))
      .map((name) => join(folder, name))
      .find((path) => {
        const found = statSync(path);
        return found.isFile() && found.size >= FILE_BYTES;
      });
    const probe = (path: string) => settled(native().probeFile(path));
    if (there) return { path: there, ...(await probe(there)) };
    return withTemporary(join(folder, temporaryName()), async (path) => {
      writeFileSync(path, Buffer.alloc(FILE_BYTES), { flag: 'wx' });
      return { path: folder, ...(await probe(path)) };
    });
  },

  frameworks: async (folders: string[]): Promise<FoundFrameworks> => findFrameworks(folders),
  ort: loadOrt,
  tensorFlow: loadTensorFlow,
} as const;

export type Probes = typeof PROBES;

function temporaryName(): string {
  return `.fst-doctor-${randomBytes(8).toString('hex')}`;
}

/** What `use` makes of a file of this path, which is removed afterwards, and where this process ends. */
async function withTemporary<T>(path: string, use: (path: string) => Promise<T>): Promise<T> {
  const release = removedAtExit(path);
  try {
    return await use(path);
  } finally {
    rmSync(path, { force: true });
    release();
  }
}

async function main([name, args]: readonly string[]): Promise<void> {
  const probe = PROBES[name as keyof Probes] as (...args: unknown[]) => Promise<unknown>;
  try {
    process.send!({ value: await probe(...JSON.parse(args!)) });
  } catch (error) {
    process.send!({ failure: messageOf(error) });
  }
  process.disconnect();
}

if (require.main === module) {
  removedOnSignals();
  void main(process.argv.slice(2));
}
