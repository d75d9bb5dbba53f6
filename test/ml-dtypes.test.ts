import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type ConvertibleDType, type DTypeName, ParallelLoader } from 'fastsafetensors-node';
import { CONVERTIBLE } from '../src/base/dtype.js';
import { withQuietNaNs } from './support/convert-reference.js';
import { DEVICE } from './support/device.js';
import { edgeValues } from './support/edge-values.js';
import { BITS, encodeFile, newFolder } from './support/model-files.js';

// Conversions beside those of ml_dtypes and NumPy, whose answers to the same elements are recorded as hashes:
// test/long/ml-dtypes.test.ts asks them again.

const recorded: { pairs: Record<string, string> } = JSON.parse(
  readFileSync(join(__dirname, '..', 'fixtures', 'ml-dtypes.json'), 'utf8'),
);

let folder: string;
beforeAll(async () => {
  folder = await newFolder();
  for (const dtype of CONVERTIBLE) {
    const bytes = edgeValues(dtype);
    const shape = [bytes.length / (BITS[dtype] / 8)];
    await writeFile(join(folder, `${dtype}.safetensors`), encodeFile([{ name: 'values', dtype, shape, bytes }]));
  }
});
afterAll(() => rm(folder, { recursive: true }));

const pairs = CONVERTIBLE.flatMap((from) => CONVERTIBLE.filter((to) => to !== from).map((to) => [from, to] as const));

test('every pair was recorded', () => {
  expect(Object.keys(recorded.pairs).sort()).toEqual(pairs.map((pair) => pair.join(' ')).sort());
});

async function load(from: DTypeName, dtype: ConvertibleDType): Promise<Uint8Array> {
  await using loader = new ParallelLoader({ files: join(folder, `${from}.safetensors`), dtype, device: DEVICE });
  for await (const [, tensor] of loader.iterateWeights()) {
    const bytes = await tensor.toHost();
    tensor.dispose();
    return bytes.slice();
  }
  throw new Error('the file has no tensor');
}

// Payloads of NaNs are kept here and dropped there; the sign and everything else is the same, bit for bit.
test.each(pairs)('%s to %s as ml_dtypes does it', async (from, to) => {
  const converted = withQuietNaNs(to, await load(from, to));
  expect(createHash('sha256').update(converted).digest('hex')).toBe(recorded.pairs[`${from} ${to}`]);
});
