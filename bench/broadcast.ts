/**
 * What a rank takes for its parts and for tensors that every rank has whole, where each reads these by itself, and with
 * `pg.broadcast`: `npm run bench -- broadcast [--gb 64] [--replicated 20] [--init-ms 1000]`.
 *
 * Ranks are loaders of one process on emulated GPUs, with the emulated NCCL, which read through the engine from a
 * modelled store: that of the node, of which each rank has its part. Rates are a thousandth of those that are said, and
 * so is the model: seconds are those of the real one.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { nccl, ncclUniqueId, registerCopier, SafeTensorsFileLoader, saveFile } from '../src/index.js';
import { emulators, fakeReader } from '../src/testing/index.js';

/** GB/s of a node's store, by all its ranks together, and of the link between its GPUs. */
const CASES = [
  { what: 'store of the node, NVLink', ranks: 8, storage: 50, link: 200 },
  { what: 'local NVMe, NVLink', ranks: 8, storage: 12, link: 200 },
  { what: 'store of the node, PCIe alone', ranks: 8, storage: 50, link: 20 },
  { what: 'store of the node, two ranks', ranks: 2, storage: 50, link: 200 },
  { what: 'page cache, NVLink', ranks: 8, storage: 150, link: 200 },
  { what: 'page cache, PCIe alone', ranks: 8, storage: 150, link: 20 },
  { what: 'page cache, two ranks, PCIe alone', ranks: 2, storage: 80, link: 20 },
];
type Case = (typeof CASES)[number] & { gb: number; replicated: number; initMs: number; broadcast: boolean };

/** Bytes of a tensor. */
const TENSOR = 64 * 1024;

export function define(command: Command): void {
  command
    .description('replicated tensors: read by every rank, or once and broadcast, in a model of store and link')
    .option('--gb <n>', 'GB of the model', Number, 64)
    .option('--replicated <n>', 'percent of it that every rank has whole', Number, 20)
    .option('--init-ms <n>', 'milliseconds in which the ranks connect', Number, 1000)
    .option('--case <json>', 'run one case here (used by this benchmark itself)')
    .action(async ({ case: given, ...model }: { gb: number; replicated: number; initMs: number; case?: string }) => {
      if (given) {
        console.log(JSON.stringify(await measure(JSON.parse(given) as Case)));
        return;
      }
      const { gb, replicated, initMs } = model;
      console.log(`${gb} GB, ${replicated} % of it whole on every rank; they connect in ${initMs} ms`);
      for (const each of CASES) {
        const [alone, broadcast] = [false, true].map((way) => inProcess({ ...each, ...model, broadcast: way }));
        const { what, ranks, storage, link } = each;
        const rates = `${ranks} ranks, ${storage} GB/s, link ${link} GB/s`;
        const times = `each reads ${alone!.toFixed(2)} s, broadcast ${broadcast!.toFixed(2)} s`;
        console.log(`${what.padEnd(34)} ${rates.padEnd(34)} ${times}, ${(alone! - broadcast!).toFixed(2)} s less`);
      }
    });
}

/** Seconds. The emulator reads its settings once, so each case has a process of its own. */
function inProcess(what: Case): number {
  const ended = spawnSync(process.execPath, [join(__dirname, 'main.js'), 'broadcast', '--case', JSON.stringify(what)], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {
      ...process.env,
      ...emulators.cuda.env({ DEVICES: 8, DELAY_US: 0, LEAKS: 'off' }),
      ...emulators.nccl.env({ BANDWIDTH: what.link * 1e6, INIT_MS: what.initMs }),
    },
  });
  if (ended.status !== 0) throw new Error(`a case ended with ${ended.status ?? ended.signal}`);
  return JSON.parse(ended.stdout) as number;
}

async function measure({ ranks, storage, gb, replicated, broadcast }: Case): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-bench-'));
  try {
    const path = join(folder, 'model.safetensors');
    const count = Math.round((gb * 1e6) / TENSOR);
    const whole = Math.round((count * replicated) / 100);
    const data = new Uint8Array(TENSOR);
    const names = Array.from({ length: count }, (_, i) => `${i < whole ? 'whole' : 'part'}.${i}`);
    await saveFile(
      names.map((name) => ({ name, dtype: 'U8' as const, shape: [TENSOR], data })),
      path,
    );
    registerCopier('modelled', fakeReader({ gbPerSecond: storage / ranks / 1000, fillsHost: 0 }));
    const uniqueId = broadcast ? await ncclUniqueId() : undefined;
    const loaders = await Promise.all(
      Array.from({ length: ranks }, async (_, rank) => {
        const pg = { rank, size: ranks, ...(uniqueId && { broadcast: nccl({ uniqueId }) }) };
        const loader = new SafeTensorsFileLoader({ device: `cuda:${rank}`, copier: 'modelled', pg });
        await loader.addFilenames(path);
        return { pg, loader, buffer: await loader.copyFilesToDevice() };
      }),
    );
    const began = performance.now();
    await Promise.all(
      loaders.map(async ({ buffer }) => {
        for await (const [, tensor] of buffer.shardedPlan({ 'part.*': 0, 'whole.*': -1 })) tensor.dispose();
      }),
    );
    const seconds = (performance.now() - began) / 1000;
    await Promise.all(
      loaders.map(async ({ loader, pg }) => {
        await loader.close();
        await pg.broadcast?.close();
      }),
    );
    return seconds;
  } finally {
    rmSync(folder, { recursive: true });
  }
}
