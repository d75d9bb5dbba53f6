/**
 * A model in other files, beside cp of it: `npm run bench -- save [--folder /tmp] [--mib 4096] [--rounds 5] [--sync]
 * [--only cp,reshard]`. Medians of interleaved rounds, each way in a process of its own: until the process has ended,
 * its start included. Nothing is synced, as by cp; with --sync what each way has written is, and counts. No way finds
 * the disk busy with what another wrote, and each round has an order of its own: some are twice as fast after one than
 * after another.
 */
import { spawnSync } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
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
    .option('--only <texts>', 'cp, and ways with one of these texts in their name, by commas')
    .action(async ({ folder, mib, rounds, sync, only }) => {
      const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
      try {
        await printWays(own, { mib: Number(mib), rounds: Number(rounds), sync, only: only?.split(',') });
      } finally {
        rmSync(own, { recursive: true });
      }
    });
}

interface Size {
  readonly mib: number;
  readonly rounds: number;
  readonly sync?: boolean;
  readonly only?: readonly string[];
}

async function printWays(folder: string, { mib, rounds, sync = false, only }: Size): Promise<void> {
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
  const names = Object.keys(ways).filter((name) => !only || name === 'cp' || only.some((text) => name.includes(text)));
  const seconds = new Map(names.map((name) => [name, [] as number[]]));
  for (let round = 0; round < rounds; ++round) {
    for (const name of shuffled(names)) {
      const [program, ...args] = ways[name]!;
      spawnSync('sync');
      const began = performance.now();
      const { status, stderr } = spawnSync(program!, args, { encoding: 'utf8' });
      seconds.get(name)!.push((performance.now() - began) / 1e3);
      if (status !== 0) throw new Error(`${name}: ${stderr}`);
      for (const path of [out, `${out}.safetensors`]) rmSync(path, { recursive: true, force: true });
    }
  }
  const median = (name: string): number => seconds.get(name)!.sort((a, b) => a - b)[rounds >> 1]!;
  for (const name of names) {
    const rate = (mib * MIB) / median(name) / 1e9;
    console.log(`${name}: ${rate.toFixed(2)} GB/s, ${(median('cp') / median(name)).toFixed(2)} of cp's speed`);
  }
}

function shuffled(names: readonly string[]): string[] {
  const left = [...names];
  return names.map(() => left.splice(randomInt(left.length), 1)[0]!);
}

/** Tensors of 16 MiB. */
async function* model(mib: number): AsyncGenerator<[string, SaveTensor]> {
  const data = randomBytes(16 * MIB);
  for (let i = 0; i < mib / 16; ++i) yield [`t${i}`, { dtype: 'BF16', shape: [8 * MIB], data }];
}
