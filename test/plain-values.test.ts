import { rm } from 'node:fs/promises';
import { inspect } from 'node:util';
import { serialize } from 'node:v8';
import { MessageChannel } from 'node:worker_threads';
import { DeviceTensor, ParallelLoader, SafeTensorsMetadata } from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// What becomes of headers and tensors where plain values are wanted: JSON, logs, and messages between threads.

let folder: string;
let path: string;
beforeAll(async () => {
  folder = await newFolder();
  path = await writeModel(folder, [entry('w', 'F32', [2, 3]), entry('__proto__', 'U8', [4])]);
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(expectNothingHeld);

async function withTensor(use: (tensor: DeviceTensor) => void | Promise<void>): Promise<void> {
  await using loader = new ParallelLoader({ files: path, filter: (name) => name === 'w' });
  for await (const [, tensor] of loader.iterateWeights()) {
    await use(tensor);
    tensor.dispose();
  }
}

test('a header becomes JSON, every tensor of it included', async () => {
  const header = await SafeTensorsMetadata.fromFile(path);
  const parsed = JSON.parse(JSON.stringify({ header }));
  const { headerLength, dataStart, sizeBytes } = header;
  expect(parsed.header).toMatchObject({ path, headerLength, dataStart, sizeBytes, tensorCount: 2, metadata: {} });
  expect(parsed.header.tensors).toEqual([...header].map((frame) => JSON.parse(JSON.stringify(frame))));
  expect(parsed.header.tensors.map(({ name }: { name: string }) => name)).toEqual(header.keys());
  const frame = header.get('w')!;
  expect(frame.toJSON()).toEqual({
    name: 'w',
    dtype: 'F32',
    shape: [2, 3],
    dataOffsets: frame.dataOffsets,
    byteLength: 24,
  });
});

test('a tensor becomes JSON, and a line of a log, without its elements', async () => {
  const plain = { name: 'w', dtype: 'F32', shape: [2, 3], byteLength: 24, device: 'cpu' };
  await withTensor((tensor) => {
    expect(JSON.parse(JSON.stringify({ tensor })).tensor).toEqual(plain);
    expect(tensor.constructor.name).toBe('DeviceTensor');
    expect(tensor).toBeInstanceOf(DeviceTensor);
    const line = inspect({ tensor }, { breakLength: Number.POSITIVE_INFINITY });
    expect(line).toContain(
      "tensor: DeviceTensor { name: 'w', dtype: 'F32', shape: [ 2, 3 ], byteLength: 24, device: Device { cpu } }",
    );
    expect(line).not.toContain('Symbol');
    tensor.dispose();
    expect(tensor.toJSON()).toEqual(plain); // it needs no memory
  });
});

test('a tensor cannot be cloned or posted to another thread: the error names the way out', async () => {
  const { port1, port2 } = new MessageChannel();
  await withTensor((tensor) => {
    for (const post of [
      () => structuredClone(tensor),
      () => structuredClone({ some: [tensor] }),
      () => port1.postMessage(new Map([['w', tensor]])),
      () => serialize(tensor),
      () => structuredClone(tensor.device),
    ]) {
      expect(post).toThrow(/DeviceTensor stays in its thread.*share\(\).*importTensors\(\).*could not be cloned/);
      expect(post).toThrow(/toHost\(\).*String\(device\)/);
    }
  });
  port1.close();
  port2.close();
});
