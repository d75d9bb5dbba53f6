/**
 * Warm files into host memory, until each page of each tensor was touched, beside what the hardware can do:
 * `npm run bench -- host [--only mapped] [--folder /dev/shm] [--mib 1024] [--rounds 7]`. Medians of interleaved rounds.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { ParallelLoader, SafeTensorsFileLoader } from '../src/index.js';

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
    .option('--only <what>', 'mapped: no copied loads')
    .option('--folder <path>', 'where the files are written', '/dev/shm')
    .option('--mib <n>', 'MiB of weights', '1024')
    .option('--rounds <n>', 'rounds', '7')
    .action(async ({ only, folder, mib, rounds }) => {
      const build = join(__dirname, '..', '..', 'build', 'cmake');
      const built = spawnSync('cmake', ['--build', build, '--target', 'mapping_floor'], { encoding: 'utf8' });
      if (built.status !== 0) throw new Error(`the floor cannot be built: ${built.stdout}${built.stderr}`);
      for (const [name, row] of Object.entries(ROWS)) {
        const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
        try {
          const paths = writeFiles(own, row, Number(mib) * MIB);
          await printRow(name, paths, Number(mib) * MIB, Number(rounds), only, join(build, 'mapping_floor'));
        } finally {
          rmSync(own, { recursive: true });
        }
      }
    });
}

async function printRow(
  name: string,
  paths: readonly string[],
  bytes: number,
  rounds: number,
  only: string | undefined,
  floor: string,
): Promise<void> {
  const ways: Record<string, () => number | Promise<number>> = {
    floor: () => {
      const { stdout, status } = spawnSync(floor, [String(THREADS), ...paths], { encoding: 'utf8' });
      if (status !== 0) throw new Error(`${floor} failed`);
      return Number.parseFloat(stdout);
    },
    'mapped, streamed': () => streamed(paths, true),
    'mapped, whole': () => whole(paths, true),
    ...(only !== 'mapped' && { 'copied, streamed': () => streamed(paths, false) }),
  };
  const seconds = Object.fromEntries(Object.keys(ways).map((way) => [way, [] as number[]]));
  for (let round = 0; round < rounds; ++round)
    for (const [way, run] of Object.entries(ways)) seconds[way]!.push(await run());
  const medians = Object.entries(seconds).map(
    ([way, list]) => [way, list.sort((a, b) => a - b)[rounds >> 1]!] as const,
  );
  const [, least] = medians[0]!;
  for (const [way, median] of medians) {
    const rate = `${(bytes / median / 1e9).toFixed(2)} GB/s`.padStart(11);
    console.log(`${name.padEnd(15)} ${way.padEnd(17)} ${rate}  ${((least / median) * 100).toFixed(0).padStart(3)} %`);
  }
}

async function streamed(files: readonly string[], mmap: boolean): Promise<number> {
  const began = performance.now();
  const tensors: { readonly data: ArrayBufferView | null; dispose(): void }[] = [];
  await using loader = new ParallelLoader({ files: [...files], mmap, queueSize: 64 });
  for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
  return touched(tensors, began);
}

async function whole(files: readonly string[], mmap: boolean): Promise<number> {
  const began = performance.now();
  await using loader = new SafeTensorsFileLoader({ mmap });
  await loader.addFilenames([...files]);
  await using buffer = await loader.copyFilesToDevice();
  const tensors: { readonly data: ArrayBufferView | null; dispose(): void }[] = [];
  for (const name of buffer.keys()) tensors.push(await buffer.getTensor(name));
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

/** F32 tensors of equal size, their data at multiples of 64. */
function writeFiles(folder: string, { files, tensors }: { files: number; tensors: number }, bytes: number): string[] {
  const elements = Math.floor(bytes / files / tensors / 4);
  return Array.from({ length: files }, (_, file) => {
    const entries = Array.from({ length: tensors }, (_, i) => {
      const offsets = [i * elements * 4, (i + 1) * elements * 4];
      return [`${file}.${i}`, { dtype: 'F32', shape: [elements], data_offsets: offsets }];
    });
    const json = JSON.stringify(Object.fromEntries(entries));
    const header = Buffer.from(json.padEnd(Math.ceil((8 + json.length) / 64) * 64 - 8));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    const path = join(folder, `${file}.safetensors`);
    writeFileSync(path, Buffer.concat([length, header, Buffer.alloc(elements * tensors * 4, 0x3f)]));
    return path;
  });
}
