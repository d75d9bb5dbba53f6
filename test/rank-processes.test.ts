import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { LoaderOptions, LoadReport } from 'fastsafetensors-node';
import { runChild } from './support/child.js';
import { type Entry, entry, newFolder, writeModel } from './support/model-files.js';
import { blockOf, partOf } from './support/parts.js';

// Four processes, each with the environment that torchrun gives it, read a model together. What is mapped is not read.

const RANKS = 4;
const MODEL = [
  entry('embed', 'BF16', [1000, 512]),
  entry('norm', 'F32', [512]),
  entry('down', 'BF16', [12, 131_072]), // a rank's part of a row has 64 KiB
  entry('odd', 'U8', [7, 300_001]),
];

let folder: string;
let path: string;
beforeAll(async () => {
  folder = await newFolder();
  path = await writeModel(folder, MODEL);
});
afterAll(() => rm(folder, { recursive: true }));

async function onRanks(
  rules: Record<string, number>,
  options: LoaderOptions,
): Promise<{ report: LoadReport; shapes: Record<string, number[]>; bytes: Buffer }[]> {
  return Promise.all(
    Array.from({ length: RANKS }, async (_, rank) => {
      const output = join(folder, `rank-${rank}`);
      const env = { RANK: String(rank), WORLD_SIZE: String(RANKS), LOCAL_RANK: String(rank) };
      const args = [[path], rules, output, options].map((arg) => (typeof arg === 'string' ? arg : JSON.stringify(arg)));
      const { code, stdout, stderr } = await runChild('rank-processes.child.cjs', args, { env });
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      return { ...JSON.parse(stdout), bytes: await readFile(output) };
    }),
  );
}

test.each<[string, Record<string, number>, LoaderOptions, number]>([
  ['along dimension 0', { '*': 0 }, { mmap: false }, 1.02],
  ['along dimension 0, through slots', { '*': 0 }, { staging: 'always' }, 1.02],
  ['along dimension 1, where rows are long', { down: 1, odd: 1, '*': 0 }, { mmap: false }, 1.05],
  ['along dimension 1, past the page cache', { down: 1, odd: 1, '*': 0 }, { odirect: true }, 1.12],
])('%s: together they give the model byte for byte, and ask for little more', async (_, rules, options, most) => {
  const ranks = await onRanks(rules, options);
  const total = MODEL.reduce((sum, { bytes }) => sum + bytes.length, 0);
  const read = ranks.reduce((sum, { report }) => sum + report.readBytes, 0);
  expect(ranks.reduce((sum, { report }) => sum + report.wantedBytes, 0)).toBe(total);
  expect(read).toBeGreaterThanOrEqual(total);
  expect(read).toBeLessThanOrEqual(most * total);
  for (const [rank, { shapes, bytes }] of ranks.entries()) {
    const parts = MODEL.map((given: Entry) => {
      const dim = rules[given.name] ?? rules['*']!;
      const part = partOf(given, dim, blockOf(given.shape[dim]!, rank, RANKS))!;
      expect(shapes[given.name]).toEqual(part.shape);
      return part.bytes;
    });
    expect(Buffer.compare(bytes, Buffer.concat(parts))).toBe(0);
  }
});
