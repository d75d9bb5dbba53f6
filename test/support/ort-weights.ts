import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import * as ort from 'onnxruntime-node';
import { nativeMetrics } from '../../src/native/metrics.js';
import { saveFile } from '../../src/safetensors/save-file.js';
import { bytesOf, externalTensor, floats, model, node, value } from './onnx-model.js';

// Models of one weight of 512 floats and its files, for tests of how they find each other.

/** A new one for each test. */
export let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ort-weights-'));
});
afterEach(() => rm(folder, { recursive: true }));

export const W = floats(512, 0.5);
export const x = () => new ort.Tensor('float32', floats(512), [512]);
export const sum = Float32Array.from(floats(512), (v, i) => v + W[i]!);

type Tensors = Parameters<typeof saveFile>[0];
export const f32 = (name: string, data: Float32Array, shape = [data.length]) => ({
  name,
  dtype: 'F32' as const,
  shape,
  data: bytesOf(data),
});

export async function save(tensors: Tensors, name = 'm.safetensors') {
  const path = join(folder, name);
  await saveFile(tensors, path);
  return path;
}
export async function write(bytes: Uint8Array, name = 'm.onnx') {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}
/** A file of a length that nothing was written to. */
export async function hole(name: string, length: number) {
  await writeFile(join(folder, name), '');
  await truncate(join(folder, name), length);
}

/** y = x + w, whose w is external data. */
export const adding = (location: string, extra = {}) =>
  model({
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [externalTensor('w', [512], { location, offset: '0', length: '2048', ...extra })],
    inputs: [value('x', [512])],
    outputs: [value('y', [512])],
  });

export async function run(
  session: { run(feeds: object): Promise<ort.InferenceSession.ReturnType>; release(): Promise<void> },
  feeds: object = { x: x() },
) {
  try {
    return (await session.run(feeds)).y!.data;
  } finally {
    await session.release();
  }
}
/** Bytes that are held once what nobody reaches has been collected: typed arrays hold their memory until then. */
export const released = async () => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let i = 0; i < 100 && nativeMetrics().hostBytes > 0; ++i) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return nativeMetrics().hostBytes;
};
