/**
 * What a rank takes to load its parts, beside reading whole tensors: `npm run bench -- ranks [--folder /dev/shm]
 * [--mib 512] [--ranks 4] [--rounds 5] [--cold] [--odirect]`. Rows by the bytes of a rank's run. Medians of interleaved
 * rounds, on one rank. Beside them whole tensors that are mapped, from which nothing is read and no part is cut.
 */
import { execFileSync } from 'node:child_process';
import { closeSync, fdatasyncSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import type { Command } from 'commander';
import { type LoaderOptions, SafeTensorsFileLoader } from '../src/index.js';
import { median } from './held.js';

const MIB = 1024 * 1024;
/** Bytes of a rank's part of a row; 0: dimension 0, where it has whole rows. */
const RUNS = [0, 256 * 1024, 64 * 1024, 16 * 1024, 4096, 1024, 256, 64];
const TENSORS = 8;
/** What the load before unmaps, in the background, is done by then. */
const UNMAPPED_MS = 50;

interface Options {
  folder: string;
  mib: string;
  ranks: string;
  rounds: string;
  cold?: boolean;
  odirect?: boolean;
}

export function define(command: Command): void {
  command
    .option('--folder <path>', 'where the file is written', '/dev/shm')
    .option('--mib <n>', 'MiB of weights', '512')
    .option('--ranks <n>', 'ranks', '4')
    .option('--rounds <n>', 'rounds', '5')
    .option('--cold', 'the file is dropped from the page cache before each load')
    .option('--odirect', 'past the page cache')
    .action(async (options: Options) => {
      for (const run of RUNS) await printRow(run, options);
    });
}

async function printRow(run: number, { folder, mib, ranks, rounds, cold, odirect }: Options): Promise<void> {
  const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
  try {
    const size = Number(ranks);
    const direct = odirect ? { odirect } : {};
    const path = writeFile(own, run === 0 ? 8192 : run * size, Number(mib) * MIB);
    const ways: Record<string, () => Promise<{ seconds: number; read: number; wanted: number }>> = {
      whole: () => load(path, size, -1, { mmap: false, ...direct }),
      mapped: () => load(path, size, -1, {}),
      part: () => load(path, size, run === 0 ? 0 : 1, { mmap: false, ...direct }),
    };
    const results = Object.fromEntries(Object.keys(ways).map((way) => [way, [] as number[]]));
    let amplified = 1;
    for (let round = 0; round < Number(rounds); ++round) {
      for (const [way, start] of Object.entries(ways)) {
        if (cold) execFileSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'status=none']);
        await setTimeout(UNMAPPED_MS);
        const { seconds, read, wanted } = await start();
        results[way]!.push(seconds);
        if (way === 'part') amplified = read / wanted;
      }
    }
    const [whole, mapped, part] = Object.values(results).map((seconds) => median(seconds) * 1000) as [
      number,
      number,
      number,
    ];
    const what = run === 0 ? 'dimension 0' : `runs of ${run}`;
    const times = `whole ${whole.toFixed(1)} ms, mapped ${mapped.toFixed(1)} ms, part ${part.toFixed(1)} ms`;
    const ratio = `${(part / whole).toFixed(2)} x of whole, read / wanted ${amplified.toFixed(2)}`;
    console.log(`${what.padEnd(16)} ${times.padEnd(52)} ${ratio}`);
  } finally {
    rmSync(own, { recursive: true });
  }
}

async function load(path: string, size: number, dim: number, options: LoaderOptions) {
  const began = performance.now();
  await using loader = new SafeTensorsFileLoader({ pg: { rank: 1, size }, ...options });
  await loader.addFilenames(path);
  await using buffer = await loader.copyFilesToDevice();
  for await (const [, tensor] of buffer.shardedPlan({ '*': dim })) tensor.dispose();
  const { readBytes, wantedBytes } = loader.report;
  return { seconds: (performance.now() - began) / 1000, read: readBytes, wanted: wantedBytes };
}

/** U8 tensors of equal size with rows of so many bytes. */
function writeFile(folder: string, row: number, bytes: number): string {
  const rows = Math.max(1, Math.floor(bytes / TENSORS / row));
  const each = rows * row;
  const entries = Array.from({ length: TENSORS }, (_, i) => [
    `t${i}`,
    { dtype: 'U8', shape: [rows, row], data_offsets: [i * each, (i + 1) * each] },
  ]);
  const json = JSON.stringify(Object.fromEntries(entries));
  const header = Buffer.from(json.padEnd(Math.ceil((8 + json.length) / 64) * 64 - 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const path = join(folder, 'model.safetensors');
  const file = openSync(path, 'w');
  writeSync(file, Buffer.concat([length, header]));
  const block = Buffer.alloc(each, 0x3f);
  for (let i = 0; i < TENSORS; ++i) writeSync(file, block);
  fdatasyncSync(file); // what is dirty stays in the page cache
  closeSync(file);
  return path;
}
