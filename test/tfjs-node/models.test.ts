import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type * as TF from '@tensorflow/tfjs';
import { loadGraphModel, loadLayersModel } from '../../adapters/tfjs/index.js';
import { checkTfjsSplit } from '../../src/models/tfjs/check-split.js';
import { splitTfjs } from '../../src/models/tfjs/split.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import { NOTHING_HELD, testFolder, writeTensors } from '../support/tensor-files.js';
import { packageFile, trainLayersModel } from '../support/tf-models.js';

const tf: typeof TF = require('@tensorflow/tfjs-node');
const folder = testFolder();

/**
 * tf's own loader on the original files against ours on the split ones: the same bits on random inputs. Everything is
 * freed after.
 */
async function compare(path: string, layers: boolean, shape: number[], inputs: number): Promise<void> {
  expect(existsSync(path)).toBe(true);
  const report = await splitTfjs(path, { out: join(folder, String(Math.random())) });
  expect(await checkTfjsSplit(report)).toBe(report.bytes);
  const before = tf.memory();
  const original = layers ? await tf.loadLayersModel(`file://${path}`) : await tf.loadGraphModel(`file://${path}`);
  const ours = layers ? await loadLayersModel(tf, report.graph) : await loadGraphModel(tf, report.graph);
  expect(nativeMetrics().hostBytes).toBeGreaterThan(0);
  for (let seed = 1; seed <= inputs; ++seed) {
    tf.tidy(() => {
      const x = tf.randomNormal(shape, 0, 1, 'float32', seed);
      const [expected, found] = [original, ours].map((model) => {
        const y = (model as TF.GraphModel).predict(x);
        const named = y instanceof tf.Tensor ? { y } : (y as Record<string, TF.Tensor>);
        return Object.entries(named).map(([name, t]) => [name, t.shape, t.dataSync()] as const);
      });
      expect(expected!.some(([, , values]) => values.some((value) => value !== 0))).toBe(true);
      expect(found).toEqual(expected);
    });
  }
  original.dispose();
  ours.dispose();
  expect(tf.memory()).toMatchObject({ numTensors: before.numTensors, numDataBuffers: before.numDataBuffers });
  expect(nativeMetrics()).toEqual(NOTHING_HELD);
}

describe('outputs equal those of tf’s own loaders on the original files', () => {
  test('a layers model with dense, convolution, batch normalisation and LSTM', async () => {
    await compare(await trainLayersModel(tf, join(folder, 'trained')), true, [3, 8, 8, 3], 20);
  });
  test('a layers model from npm: @upscalerjs/default-model', async () => {
    await compare(packageFile('@upscalerjs/default-model/models/model.json'), true, [1, 12, 10, 3], 5);
  });
  test('a graph model from npm: @spotify/basic-pitch', async () => {
    await compare(packageFile('@spotify/basic-pitch/model/model.json'), false, [1, 43844, 1], 3);
  });
});

test('a load that fails gives everything back at once', async () => {
  const weights = await writeTensors(join(folder, 'fails.safetensors'), {
    a: { dtype: 'F32', shape: [1000], data: new Float32Array(1000) },
    b: { dtype: 'I64', shape: [1], data: BigInt64Array.of(2n ** 40n) },
    c: { dtype: 'F16', shape: [2], data: new Uint16Array(2) },
  });
  const specs = [
    { name: 'a', shape: [1000], dtype: 'float32' },
    { name: 'b', shape: [1], dtype: 'int32' },
    { name: 'c', shape: [2], dtype: 'float32' },
  ];
  const model = {
    format: 'graph-model',
    modelTopology: { node: [], versions: { producer: 1 } },
    weightsManifest: [{ paths: [], weights: specs }],
  };
  const before = tf.memory();
  await expect(loadGraphModel(tf, model, { weights })).rejects.toMatchObject({
    code: 'UNSUPPORTED_DTYPE',
    tensor: 'b',
  });
  // Nobody waits for the garbage collector.
  expect(nativeMetrics()).toEqual(NOTHING_HELD);
  expect(tf.memory()).toMatchObject({ numTensors: before.numTensors, numDataBuffers: before.numDataBuffers });
});

test('a model goes on training on the loaded weights', async () => {
  const path = await trainLayersModel(tf, join(folder, 'training'));
  const { graph } = await splitTfjs(path);
  const before = tf.memory().numTensors;
  const model = await loadLayersModel(tf, graph);
  const optimizer = tf.train.adam(0.01);
  model.compile({ optimizer, loss: 'categoricalCrossentropy' });
  const x = tf.randomNormal([8, 8, 8, 3], 0, 1, 'float32', 3);
  const y = tf.tidy(() => tf.oneHot(tf.tensor1d([0, 1, 2, 3, 0, 1, 2, 3], 'int32'), 4));
  const history = await model.fit(x, y, { epochs: 5, verbose: 0 });
  const losses = history.history.loss as number[];
  expect(losses[4]).toBeLessThan(losses[0]!);
  tf.dispose([x, y]);
  model.dispose();
  optimizer.dispose();
  tf.disposeVariables();
  expect(tf.memory().numTensors).toBeLessThanOrEqual(before + 1); // model.fit keeps one of its own
  expect(nativeMetrics()).toEqual(NOTHING_HELD);
});
