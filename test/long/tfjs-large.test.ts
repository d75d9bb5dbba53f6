import * as tf from '@tensorflow/tfjs';
import { loadGraphModel } from '../../adapters/tfjs/index.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import { largeGraphModel } from '../support/large-model.js';
import { collectedMetrics, NOTHING_HELD, testFolder } from '../support/tensor-files.js';

const folder = testFolder();

test('a model of 5 GiB on the cpu backend, its memory once', async () => {
  jest.spyOn(console, 'warn').mockImplementation(() => {});
  await tf.setBackend('cpu');
  const { model, weights, rows } = largeGraphModel(folder, 5);
  const before = process.memoryUsage().rss;
  const loaded = await loadGraphModel(tf, model, { weights });
  expect(nativeMetrics().hostBytes).toBe(5 * 2 ** 30);
  expect(process.memoryUsage().rss - before).toBeLessThan(5.3 * 2 ** 30);
  const sum = (row: number) =>
    tf.tidy(() => [...new Set((loaded.execute(tf.tensor1d([row], 'int32')) as tf.Tensor).dataSync())]);
  expect(sum(rows - 1)).toEqual([1 + 2 + 3 + 4 + 5]);
  expect(sum(rows - 2)).toEqual([0]);
  loaded.dispose();
  expect(tf.memory().numTensors).toBe(0);
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});
