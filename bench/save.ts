/**
 * A model in other files, beside cp of it: `npm run bench -- save [--folder /tmp] [--mib 4096] [--rounds 5] [--sync]`.
 * Medians of interleaved rounds, each way in a process of its own: until the process has ended, its start included.
 * Nothing is synced, as by cp; with --sync what each way has written is, and counts.
 */
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { type SaveTensor, saveSharded } from '../src/index.js';

const MIB = 1024 * 1024;
const CLI = join(__dirname, '..', 'src', 'cli', 'main.js');

export function define(command: Command): void {
  command
    .option('--folder <path>', 'where the files are written', '/tmp')
    .option('--mib <n>', 'MiB of weights', '4096')
    .option('--rounds <n>', 'rounds', '5')
    .option('--sync', 'until all is on the disk')
    .action(async ({ folder, mib, rounds, sync }) => {
      const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
      try {
        await printWays(own, { mib: Number(mib), rounds: Number(rounds), sync });
      } finally {
        rmSync(own, { recursive: true });
      }
    });
}

interface Size {
  readonly mib: number;
  readonly rounds: number;
  readonly sync?: boolean;
}

async function printWays(folder: string, { mib, rounds, sync = false }: Size): Promise<void> {
  const source = join(folder, 'source');
  const out = join(folder, 'out');
  await saveSharded(model(mib), source, { maxShardBytes: 512 * MIB, fsync: false });
  const cli = (...args: string[]): string[] => [process.execPath, CLI, ...args, ...(sync ? [] : ['--no-fsync'])];
  const cp = (...options: string[]): string[] =>
    sync
      ? ['sh', '-c', `cp -r ${options.join(' ')} "$0" "$1" && sync "$1"/*`, source, out]
      : ['cp', '-r', ...options, source, out];
  const ways: Record<string, string[]> = {
    cp: cp(),
    'cp --reflink=never': cp('--reflink=never'),
    reshard: cli('reshard', source, out, '--max-shard-bytes', '384MiB'),
    merge: cli('merge', source, `${out}.safetensors`),
    'convert to F32': cli('convert', source, out, '--dtype', 'F32', '--max-shard-bytes', '384MiB'),
  };
  const seconds = new Map(Object.keys(ways).map((name) => [name, [] as number[]]));
  for (let round = 0; round < rounds; ++round) {
    for (const [name, [program, ...args]] of Object.entries(ways)) {
      const began = performance.now();
      const { status, stderr } = spawnSync(program!, args, { encoding: 'utf8' });
      seconds.get(name)!.push((performance.now() - began) / 1e3);
      if (status !== 0) throw new Error(`${name}: ${stderr}`);
      for (const path of [out, `${out}.safetensors`]) rmSync(path, { recursive: true, force: true });
    }
  }
  const median = (name: string): number => seconds.get(name)!.sort((a, b) => a - b)[rounds >> 1]!;
  for (const name of Object.keys(ways)) {
    const rate = (mib * MIB) / median(name) / 1e9;
    console.log(`${name}: ${rate.toFixed(2)} GB/s, ${(median('cp') / median(name)).toFixed(2)} of cp's speed`);
  }
}

/** Tensors of 16 MiB. */
async function* model(mib: number): AsyncGenerator<[string, SaveTensor]> {
  const data = randomBytes(16 * MIB);
  for (let i = 0; i < mib / 16; ++i) yield [`t${i}`, { dtype: 'BF16', shape: [8 * MIB], data }];
}
