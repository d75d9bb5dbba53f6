import { rm } from 'node:fs/promises';
import { type DeviceTensor, nativeMetrics, ParallelLoader, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { expectNothingHeld, heapBytes } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// What memory a tensor that is kept holds: the allocation that it lies in, which maxBatchBytes bounds, too.

const KIB = 1024;
const ENTRIES = Array.from({ length: 64 }, (_, i) => entry(`t${String(i).padStart(2, '0')}`, 'U8', [KIB]));

let folder: string;
let files: string;
beforeEach(async () => {
  folder = await newFolder();
  files = await writeModel(folder, [...ENTRIES, entry('large', 'U8', [32 * KIB])]);
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

async function keep(options: { maxBatchBytes?: number; dtype?: 'F16' }, name: string): Promise<DeviceTensor> {
  const loader = new ParallelLoader({ files, ...options });
  let kept: DeviceTensor | undefined;
  for await (const [each, tensor] of loader.iterateWeights()) {
    if (each === name) kept = tensor;
    else tensor.dispose();
  }
  await loader.close();
  return kept!;
}

async function heldBytes(most: number): Promise<number> {
  for (let i = 0; i < 200 && nativeMetrics().hostBytes > most; ++i)
    await new Promise((resolve) => setTimeout(resolve, 5));
  return nativeMetrics().hostBytes;
}

test.each(['t00', 't01', 't31', 't63'])('%s holds at most maxBatchBytes', async (name) => {
  using kept = await keep({ maxBatchBytes: 4 * KIB }, name);
  expect(await heldBytes(4 * KIB)).toBeLessThanOrEqual(4 * KIB);
  expect(Buffer.from(await kept.toHost())).toEqual(Buffer.from(ENTRIES.find((each) => each.name === name)!.bytes));
});

test('a larger tensor holds what it has', async () => {
  using _ = await keep({ maxBatchBytes: 4 * KIB }, 'large');
  expect(await heldBytes(32 * KIB)).toBe(32 * KIB);
});

test('without it, and in a buffer, a tensor holds its neighbours, and its clone does not', async () => {
  using kept = await keep({}, 't01');
  expect(await heldBytes(96 * KIB)).toBe(96 * KIB);
  using copy = await kept.clone();
  kept.dispose();
  expect(await heldBytes(KIB)).toBe(KIB);
  copy.dispose();
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(files);
  const buffer = await loader.copyFilesToDevice();
  using tensor = await buffer.getTensor('t01');
  await buffer.close();
  await loader.close();
  expect(await heldBytes(96 * KIB)).toBe(96 * KIB);
  expect(tensor.byteLength).toBe(KIB);
});

test('a tensor keeps less than 300 bytes of the JavaScript heap', async () => {
  const many = await writeModel(
    folder,
    Array.from({ length: 5000 }, (_, i) => entry(`model.layers.${i}.weight`, 'U8', [2, 3, 1])),
    'many.safetensors',
  );
  const load = async (tensors: DeviceTensor[]): Promise<void> => {
    const loader = new ParallelLoader({ files: many });
    for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
    await loader.close();
  };
  const tensors: DeviceTensor[] = [];
  await load(tensors); // what is compiled and kept once
  const before = heapBytes();
  await load(tensors);
  expect((heapBytes() - before) / 5000).toBeLessThan(300);
  for (const tensor of tensors) tensor.dispose();
});
