/**
 * What verifying costs a load of a warm file: `npm run bench -- checksum [--folder /dev/shm] [--mib 1024] [--rounds 9]
 * [--rate GB/s]`. Medians of interleaved rounds with checksum: 'auto' and false; `--rate` holds reads back to the speed
 * of a store that uses no CPU.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { type LoaderOptions, ParallelLoader, saveFile } from '../src/index.js';
import { median } from './held.js';

const TENSOR_MIB = 16;

const WAYS: Readonly<Record<string, LoaderOptions>> = {
  copied: { mmap: false },
  mapped: { mmap: true },
  'through slots': { mmap: false, staging: 'always' },
  'to BF16': { mmap: false, dtype: 'BF16' },
};

export function define(command: Command): void {
  command
    .option('--folder <path>', 'where the file is written', '/dev/shm')
    .option('--mib <n>', 'its size', '1024')
    .option('--rounds <n>', 'rounds', '9')
    .option('--rate <n>', 'GB/s of reads at most')
    .action(async ({ folder, mib, rounds, rate }) => {
      const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
      try {
        const path = join(own, 'model.safetensors');
        const data = new Float32Array(TENSOR_MIB * 262_144).map((_, i) => i * 0.37);
        const count = Math.ceil(Number(mib) / TENSOR_MIB);
        const names = Array.from({ length: count }, (_, i) => `w.${i}`);
        const tensors = names.map((name) => ({ name, shape: [data.length], data }));
        await saveFile(tensors, path, { checksum: true });
        await measure(path, count * data.byteLength, Number(rounds), rate && Number(rate) * 1e9);
      } finally {
        rmSync(own, { recursive: true });
      }
    });
}

async function measure(path: string, bytes: number, rounds: number, maxBytesPerSecond?: number): Promise<void> {
  for (const [way, options] of Object.entries(WAYS)) {
    const seconds = { auto: [] as number[], false: [] as number[] };
    for (let round = 0; round < rounds; ++round) {
      for (const checksum of ['auto', false] as const) {
        const began = performance.now();
        const loader = new ParallelLoader({ files: path, odirect: false, checksum, maxBytesPerSecond, ...options });
        for await (const [, tensor] of loader) tensor.dispose();
        seconds[`${checksum}`].push((performance.now() - began) / 1e3);
      }
    }
    const [verified, plain] = [median(seconds.auto), median(seconds.false)];
    const rate = (time: number): string => `${(bytes / time / 1e9).toFixed(2)} GB/s`;
    const ratio = (verified / plain).toFixed(3);
    console.log(`${way.padEnd(14)} verified ${rate(verified)}, not ${rate(plain)}: ${ratio} x the time`);
  }
}
