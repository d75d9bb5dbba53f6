/**
 * Large headers and an index, read and asked for a name, and how long the event loop is held meanwhile:
 * `npm run bench -- header [--folder /dev/shm] [--rounds 5]`. Medians of interleaved rounds; "of it CPU" is what a busy
 * machine does not stretch.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { fastsafeOpen, SafeTensorsMetadata } from '../src/index.js';
import { median, Ticker } from './held.js';

const TENSORS = 1_000_000;
const TEXTS = 1_000_000;
const INDEXED = 200_000;
const SHARDS = 100;

export function define(command: Command): void {
  command
    .option('--folder <path>', 'where the files are written', '/dev/shm')
    .option('--rounds <n>', 'rounds', '5')
    .action(async ({ folder, rounds }) => {
      const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
      try {
        await measure(ways(own), Number(rounds));
      } finally {
        rmSync(own, { recursive: true });
      }
    });
}

function ways(folder: string): Record<string, () => Promise<void>> {
  const tensors = writeHeader(join(folder, 'tensors'), (i) => `layers.${i}.weight`, TENSORS);
  const texts = writeHeader(join(folder, 'texts'), () => 'w', 1, TEXTS);
  const index = writeIndex(folder);
  return {
    [`header of ${TENSORS} tensors`]: async () => {
      const header = await SafeTensorsMetadata.fromFile(tensors);
      if (!header.has('layers.7.weight')) throw new Error('a tensor is lost');
    },
    [`header with ${TEXTS} texts`]: async () => {
      const { metadata } = await SafeTensorsMetadata.fromFile(texts);
      if (metadata.get('key 7') !== 'value 7') throw new Error('a text is lost');
    },
    [`index of ${INDEXED} names`]: async () => {
      await using opened = await fastsafeOpen(index);
      opened.frame('layers.7.weight');
    },
  };
}

async function measure(runs: Record<string, () => Promise<void>>, rounds: number): Promise<void> {
  const names = Object.keys(runs);
  const lists = (): number[][] => names.map(() => []);
  const [ms, held, cpu] = [lists(), lists(), lists()];
  const ticker = new Ticker();
  for (let round = 0; round < rounds; ++round) {
    for (const [i, name] of names.entries()) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      ticker.take();
      const began = performance.now();
      await runs[name]!();
      ms[i]!.push(performance.now() - began);
      const longest = ticker.take();
      held[i]!.push(longest.ms);
      cpu[i]!.push(longest.cpuMs);
    }
  }
  ticker.stop();
  console.table(
    names.map((what, i) => ({
      what,
      ms: Number(median(ms[i]!).toFixed(1)),
      'event loop held, ms': Number(median(held[i]!).toFixed(1)),
      'of it CPU, ms': Number(median(cpu[i]!).toFixed(1)),
    })),
  );
}

/** Empty tensors, and texts in `__metadata__`. */
function writeHeader(path: string, nameOf: (i: number) => string, count: number, texts = 0): string {
  const pairs = Array.from({ length: texts }, (_, i) => `"key ${i}":"value ${i}"`);
  const entries = Array.from({ length: count }, (_, i) => `"${nameOf(i)}":${EMPTY}`);
  const header = Buffer.from(`{"__metadata__":{${pairs.join(',')}},${entries.join(',')}}`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(path, Buffer.concat([length, header]));
  return path;
}

const EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}';

function writeIndex(folder: string): string {
  const weight_map: Record<string, string> = {};
  for (let shard = 0; shard < SHARDS; ++shard) {
    const name = `${shard}.safetensors`;
    const first = (shard * INDEXED) / SHARDS;
    const nameOf = (i: number): string => `layers.${first + i}.weight`;
    writeHeader(join(folder, name), nameOf, INDEXED / SHARDS);
    for (let i = 0; i < INDEXED / SHARDS; ++i) weight_map[nameOf(i)] = name;
  }
  const path = join(folder, 'model.safetensors.index.json');
  writeFileSync(path, JSON.stringify({ weight_map }));
  return path;
}
