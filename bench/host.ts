/**
 * Warm files into host memory, until each page of each tensor was touched, beside what the hardware can do:
 * `npm run bench -- host [--only mapped|many] [--folder /dev/shm] [--mib 1024] [--rounds 7]`. Medians of interleaved
 * rounds; how long the event loop was held is without the touch.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { ParallelLoader, SafeTensorsFileLoader } from '../src/index.js';
import { median, Ticker } from './held.js';
import { writeFiles } from './write-files.js';

const MIB = 1024 * 1024;
/** As many threads as bring pages in for a load: csrc/transfer/loop.cc PopulatingThreads. */
const THREADS = Math.min(Math.max(availableParallelism(), 2), 8);
const ROWS: Readonly<Record<string, { files: number; tensors: number }>> = {
  'one file': { files: 1, tensors: 64 },
  '8 shards': { files: 8, tensors: 8 },
  '1,000 files': { files: 1000, tensors: 1 },
  '50,000 tensors': { files: 1, tensors: 50_000 },
};

export function define(command: Command): void {
  command
    .option('--only <what>', 'mapped: no copied loads; many: many files and many tensors, copied')
    .option('--folder <path>', 'where the files are written', '/dev/shm')
    .option('--mib <n>', 'MiB of weights', '1024')
    .option('--rounds <n>', 'rounds', '7')
    .action(async ({ only, folder, mib, rounds }) => {
      const build = join(__dirname, '..', '..', 'build', 'cmake');
      const targets = ['mapping_floor', 'copying_floor'];
      const built = spawnSync('cmake', ['--build', build, '--target', ...targets], { encoding: 'utf8' });
      if (built.status !== 0) throw new Error(`the floors cannot be built: ${built.stdout}${built.stderr}`);
      ticker = new Ticker();
      for (const [name, row] of Object.entries(ROWS)) {
        if (only === 'many' && row.files * row.tensors < 1000) continue;
        const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
        try {
          const paths = writeFiles(own, row, Number(mib) * MIB);
          await printRow(name, paths, Number(mib) * MIB, Number(rounds), only, build);
        } finally {
          rmSync(own, { recursive: true });
        }
      }
      ticker.stop();
    });
}

/** Of the last load, without the consumer's touch. */
let loadHeld = 0;
let ticker: Ticker;

async function printRow(
  name: string,
  paths: readonly string[],
  bytes: number,
  rounds: number,
  only: string | undefined,
  build: string,
): Promise<void> {
  const floor = (program: string) => () => {
    const { stdout, status } = spawnSync(join(build, program), [String(THREADS), ...paths], { encoding: 'utf8' });
    if (status !== 0) throw new Error(`${program} failed`);
    return Number.parseFloat(stdout);
  };
  const mapped = { streamed: () => streamed(paths, true), whole: () => whole(paths, true) };
  const copied = { streamed: () => streamed(paths, false), whole: () => whole(paths, false) };
  const kinds = { ...(only !== 'many' && { mapped }), ...(only !== 'mapped' && { copied }) };
  const ways: Record<string, () => number | Promise<number>> = {};
  for (const [kind, runs] of Object.entries(kinds)) {
    ways[`${kind}, floor`] = floor(kind === 'mapped' ? 'mapping_floor' : 'copying_floor');
    for (const [how, run] of Object.entries(runs)) ways[`${kind}, ${how}`] = run;
  }
  const seconds = Object.fromEntries(Object.keys(ways).map((way) => [way, [] as number[]]));
  const held = Object.fromEntries(Object.keys(ways).map((way) => [way, [] as number[]]));
  for (let round = 0; round < rounds; ++round) {
    for (const [way, run] of Object.entries(ways)) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      ticker.take();
      seconds[way]!.push(await run());
      held[way]!.push(loadHeld);
      loadHeld = 0;
    }
  }
  for (const [way, list] of Object.entries(seconds)) {
    const least = median(seconds[`${way.split(',')[0]}, floor`]!);
    const rate = `${(bytes / median(list) / 1e9).toFixed(2)} GB/s`.padStart(11);
    const share = `${((least / median(list)) * 100).toFixed(0).padStart(3)} %`;
    const longest = way.endsWith('floor') ? '' : `   loop held ${median(held[way]!).toFixed(1)} ms`;
    console.log(`${name.padEnd(15)} ${way.padEnd(17)} ${rate}  ${share}${longest}`);
  }
}

async function streamed(files: readonly string[], mmap: boolean): Promise<number> {
  const began = performance.now();
  const tensors: { readonly data: ArrayBufferView | null; dispose(): void }[] = [];
  await using loader = new ParallelLoader({ files: [...files], mmap, queueSize: 64 });
  for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
  loadHeld = ticker.take().ms;
  return touched(tensors, began);
}

async function whole(files: readonly string[], mmap: boolean): Promise<number> {
  const began = performance.now();
  await using loader = new SafeTensorsFileLoader({ mmap });
  await loader.addFilenames([...files]);
  await using buffer = await loader.copyFilesToDevice();
  const tensors: { readonly data: ArrayBufferView | null; dispose(): void }[] = [];
  for (const name of buffer.keys()) tensors.push(await buffer.getTensor(name));
  loadHeld = ticker.take().ms;
  return touched(tensors, began);
}

function touched(
  tensors: readonly { readonly data: ArrayBufferView | null; dispose(): void }[],
  began: number,
): number {
  let sum = 0;
  for (const { data } of tensors) {
    const floats = data as Float32Array;
    for (let i = 0; i < floats.length; i += 1024) sum += floats[i]!;
  }
  const seconds = (performance.now() - began) / 1000;
  for (const tensor of tensors) tensor.dispose();
  if (!(sum > 0)) throw new Error('the tensors hold other numbers than were written');
  return seconds;
}
