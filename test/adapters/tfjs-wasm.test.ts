import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { loadGraphModel, loadLayersModel, tfjs } from '../../adapters/tfjs/index.js';
import { fastsafeOpen } from '../../src/loaders/fastsafe-open.js';
import type { LoadReport } from '../../src/loaders/load-report.js';
import { ParallelLoader } from '../../src/loaders/parallel-loader.js';
import { splitTfjs } from '../../src/models/tfjs/split.js';
import { collectedMetrics, NOTHING_HELD, testFolder, writeTensors } from '../support/tensor-files.js';
import { fileHandler, packageFile, trainLayersModel, writeGraphModel } from '../support/tf-models.js';

/** The WebAssembly backend, which has memory of its own, as WebGL and WebGPU have: one copy through tf.tensor. */
const folder = testFolder();
const COPIED = /"wasm" keeps tensors in memory of its own: each was copied once/;

beforeAll(async () => {
  jest.spyOn(console, 'warn').mockImplementation(() => {});
  await tf.setBackend('cpu');
  await trainLayersModel(tf, join(folder, 'trained'));
  require('@tensorflow/tfjs-backend-wasm');
  await tf.setBackend('wasm');
});
let before = tf.memory();
beforeEach(() => {
  before = tf.memory();
});
afterEach(async () => {
  const { numTensors, numDataBuffers } = tf.memory(); // not bytes: tfjs miscounts those of strings
  expect([numTensors, numDataBuffers]).toEqual([before.numTensors, before.numDataBuffers]);
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});

test('a tensor is a copy, which the report tells', async () => {
  const path = await writeTensors(join(folder, 'some.safetensors'), {
    f: { dtype: 'F32', shape: [2, 2], data: Float32Array.of(1.5, -2, 3, 4) },
    h: { dtype: 'F16', shape: [1], data: Uint16Array.of(0x3c00) },
    i: { dtype: 'I64', shape: [2], data: BigInt64Array.of(-7n, 7n) },
    b: { dtype: 'BOOL', shape: [2], data: Uint8Array.of(1, 0) },
    none: { dtype: 'F32', shape: [0, 3], data: new Float32Array(0) },
    scalar: { dtype: 'F32', shape: [], data: Float32Array.of(7) },
  });
  const loader = new ParallelLoader({ files: path, framework: tfjs(tf) });
  const found: Record<string, unknown> = {};
  const loaded: tf.Tensor[] = [];
  for await (const [name, tensor] of loader.iterateWeights()) {
    found[name] = [tensor.dtype, tensor.shape, [...tensor.dataSync()]];
    loaded.push(tensor);
  }
  expect(loader.report.notes).toEqual(
    expect.arrayContaining([expect.stringMatching(COPIED), 'F16 became float32', 'I64 became int32']),
  );
  await loader.close();
  expect(found).toEqual({
    f: ['float32', [2, 2], [1.5, -2, 3, 4]],
    h: ['float32', [1], [1]],
    i: ['int32', [2], [-7, 7]],
    b: ['bool', [2], [1, 0]],
    none: ['float32', [0, 3], []],
    scalar: ['float32', [], [7]],
  });
  // The loader's memory is not needed any more: the tensors have their own.
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
  tf.dispose(loaded);
});

test('what the backend has no kernel for is refused, naming the tensor', async () => {
  const path = await writeTensors(join(folder, 'complex.safetensors'), {
    c: { dtype: 'C64', shape: [1], data: Float32Array.of(1, 2) },
  });
  const loader = new ParallelLoader({ files: path, framework: tfjs(tf) });
  await expect(loader.iterateWeights().next()).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'c' });
  await loader.close();
});

test('a change of the loader’s memory does not show', async () => {
  const path = await writeTensors(join(folder, 'one.safetensors'), {
    w: { dtype: 'F32', shape: [2], data: Float32Array.of(1, 2) },
  });
  const open = await fastsafeOpen(path);
  const tensor = await open.getTensor('w');
  const memory = tensor.data as Float32Array;
  const adopted = (await tfjs(tf).adopt(tensor)) as tf.Tensor;
  memory[0] = 42;
  expect([...adopted.dataSync()]).toEqual([1, 2]);
  adopted.dispose();
  await open.close();
});

test.each([
  ['a layers model', () => join(folder, 'trained', 'model.json'), [2, 8, 8, 3]],
  ['a layers model from npm', () => packageFile('@upscalerjs/default-model/models/model.json'), [1, 6, 5, 3]],
] as const)('%s gives the outputs of tf.loadLayersModel', async (_, path, shape) => {
  const { graph } = await splitTfjs(path(), { out: join(folder, String(Math.random())) });
  const reports: LoadReport[] = [];
  const original = await tf.loadLayersModel(fileHandler(path()));
  const ours = await loadLayersModel(tf, graph, { onReport: (report) => reports.push(report) });
  expect(reports).toEqual([expect.objectContaining({ copier: 'nogds', notes: [expect.stringMatching(COPIED)] })]);
  tf.tidy(() => {
    const x = tf.randomNormal([...shape], 0, 1, 'float32', 5);
    const [expected, found] = [original, ours].map((model) => (model.predict(x) as tf.Tensor).dataSync());
    expect(expected!.some((value) => value !== 0)).toBe(true);
    expect(found).toEqual(expected);
  });
  original.dispose();
  ours.dispose();
});

test('a graph model gives the outputs of tf.loadGraphModel', async () => {
  const path = writeGraphModel(join(folder, 'kinds'));
  const { graph } = await splitTfjs(path);
  const original = await tf.loadGraphModel(fileHandler(path));
  const ours = await loadGraphModel(tf, graph);
  const x = tf.tensor2d([1, -2, 3, 0.5, 0.25, 7], [2, 3]);
  const [expected, found] = [original, ours].map((model) => {
    const y = model.execute(x, 'y') as tf.Tensor;
    const values = [...y.dataSync()];
    y.dispose();
    return values;
  });
  expect(found).toEqual(expected);
  x.dispose();
  original.dispose();
  ours.dispose();
});

test('a backend of another tfjs-core is refused', async () => {
  const path = await writeTensors(join(folder, 'two.safetensors'), {
    w: { dtype: 'F32', shape: [1], data: Float32Array.of(1) },
  });
  const open = await fastsafeOpen(path);
  const tensor = await open.getTensor('w');
  await open.close();
  const foreign = { ...tf, engine: () => ({}) };
  expect(() => tfjs(foreign as never).adopt(tensor)).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('another copy') }),
  );
  tensor.dispose();
});

test('a backend that is not ready yet is refused, saying what to await', async () => {
  const path = await writeTensors(join(folder, 'early.safetensors'), {
    w: { dtype: 'F32', shape: [1], data: Float32Array.of(1) },
  });
  let giveUp = () => {};
  tf.registerBackend('late', () => new Promise<never>((_, reject) => (giveUp = () => reject(new Error('never')))));
  const late = tf.setBackend('late');
  try {
    const loader = new ParallelLoader({ files: path, framework: tfjs(tf) });
    await expect(loader.iterateWeights().next()).rejects.toMatchObject({
      code: 'DEVICE_UNAVAILABLE',
      message: expect.stringMatching(/no backend.*await tf\.ready\(\)/),
    });
    await loader.close();
  } finally {
    giveUp();
    await late;
    await tf.setBackend('wasm');
    tf.removeBackend('late');
  }
});
