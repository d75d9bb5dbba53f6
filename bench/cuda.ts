import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { nativeMetrics, registerCopier, SafeTensorsFileLoader, saveFile } from '../src/index.js';
import { emulators, fakeReader } from '../src/testing/index.js';

// A modelled store against the emulated GPU's modelled copies: how near a load comes to the slower of the two. The
// rates are far below what the machine can do, so that the loop is measured and not the memory.

interface Shape {
  files: number;
  tensors: number; // in each file
  bytes: number; // of each tensor
}

interface Case extends Shape {
  storage: number; // GB/s
  copy: number;
  runs: number;
}

const SHAPES: Readonly<Record<string, Shape>> = {
  'one file, large tensors': { files: 1, tensors: 8, bytes: 32 << 20 },
  'one file, small tensors': { files: 1, tensors: 8192, bytes: 16 << 10 },
  'many small files': { files: 512, tensors: 4, bytes: 64 << 10 },
};
const RATES = [
  { storage: 1, copy: 1 },
  { storage: 0.5, copy: 1 },
  { storage: 1, copy: 0.5 },
];
/** Total time over the slower of storage and copies. */
const MOST = 1.1;

export function define(command: Command): void {
  command
    .description('loads through the pinned pipeline onto the emulated GPU, against modelled storage')
    .option('--runs <n>', 'runs of each case, of which the median counts', Number, 5)
    .option('--check', `fail when a case takes more than ${MOST} times the slower of storage and copies`)
    .option('--json', 'one line of JSON a case')
    .option('--case <json>', 'run one case here (used by this benchmark itself)')
    .action(async (options: { runs: number; check?: boolean; json?: boolean; case?: string }) => {
      if (options.case) {
        console.log(JSON.stringify(await measure(JSON.parse(options.case) as Case)));
        return;
      }
      let worst = 0;
      for (const [name, shape] of Object.entries(SHAPES)) {
        for (const rates of RATES) {
          const result = inProcess({ ...shape, ...rates, runs: options.runs });
          const bytes = shape.files * shape.tensors * shape.bytes;
          const floor = bytes / (Math.min(rates.storage, rates.copy) * 1e9);
          const ratio = result.seconds / floor;
          worst = Math.max(worst, ratio);
          if (options.json) {
            console.log(JSON.stringify({ name, ...rates, bytes, floor, ...result, ratio }));
          } else {
            console.log(
              `${name.padEnd(24)} storage ${rates.storage} GB/s, copies ${rates.copy} GB/s: ` +
                `${result.seconds.toFixed(3)} s, floor ${floor.toFixed(3)} s, ${ratio.toFixed(3)}x ` +
                `(cold ${result.cold.toFixed(3)} s, staging ${(result.stagingBytes / 2 ** 20).toFixed(0)} MiB)`,
            );
          }
        }
      }
      if (options.check && worst > MOST) {
        console.error(`the worst case took ${worst.toFixed(3)} times its floor, expected at most ${MOST}`);
        process.exitCode = 1;
      }
    });
}

/** The emulator reads its settings once, so each case has a process of its own. */
function inProcess(what: Case): Result {
  const ended = spawnSync(process.execPath, [join(__dirname, 'main.js'), 'cuda', '--case', JSON.stringify(what)], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...emulators.cuda.env({ BANDWIDTH: what.copy * 1e9, DELAY_US: 0, LEAKS: 'off' }) },
  });
  if (ended.status !== 0) throw new Error(`a case ended with ${ended.status ?? ended.signal}`);
  return JSON.parse(ended.stdout) as Result;
}

interface Result {
  /** Median of all runs but the first. */
  seconds: number;
  /** The first, which makes the slots. */
  cold: number;
  /** The slots, which stay from load to load. */
  stagingBytes: number;
}

async function measure({ files, tensors, bytes, storage, runs }: Case): Promise<Result> {
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-bench-'));
  try {
    const paths = Array.from({ length: files }, (_, i) => join(folder, `${i}.safetensors`));
    const data = new Uint8Array(bytes).fill(7);
    for (const [i, path] of paths.entries()) {
      const model = Array.from({ length: tensors }, (_, t) => ({
        name: `${i}.${t}`,
        dtype: 'U8' as const,
        shape: [bytes],
        data,
      }));
      await saveFile(model, path);
    }
    registerCopier('modelled', fakeReader({ gbPerSecond: storage, fillsHost: 0 }));
    await using loader = new SafeTensorsFileLoader({ device: 'cuda:0', copier: 'modelled' });
    await loader.addFilenames(paths);
    const seconds: number[] = [];
    let stagingBytes = 0;
    for (let run = 0; run <= runs; ++run) {
      const start = performance.now();
      const buffers = await loader.copyFilesToDevice();
      seconds.push((performance.now() - start) / 1000);
      stagingBytes = Math.max(stagingBytes, nativeMetrics().stagingBytes);
      await buffers.close();
    }
    const [cold, ...warm] = seconds;
    warm.sort((a, b) => a - b);
    return { seconds: warm[warm.length >> 1]!, cold: cold!, stagingBytes };
  } finally {
    rmSync(folder, { recursive: true });
  }
}
