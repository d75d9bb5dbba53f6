import { freemem } from 'node:os';
import { join } from 'node:path';
import type * as TF from '@tensorflow/tfjs';
import { loadGraphModel, tfjs } from '../../adapters/tfjs/index.js';
import { fastsafeOpen } from '../../src/loaders/fastsafe-open.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import { largeGraphModel, writeSparse } from '../support/large-model.js';
import { NOTHING_HELD, testFolder } from '../support/tensor-files.js';

const tf: typeof TF = require('@tensorflow/tfjs-node');
const folder = testFolder();
const large = freemem() > 7 * 2 ** 30 ? test : test.skip;

large('a model of 5 GiB, its memory once, freed at once', async () => {
  const { model, weights, rows } = largeGraphModel(folder, 5);
  const before = process.memoryUsage().rss;
  const loaded = await loadGraphModel(tf, model, { weights });
  expect(nativeMetrics().hostBytes).toBe(5 * 2 ** 30);
  expect(process.memoryUsage().rss - before).toBeLessThan(5.3 * 2 ** 30);
  const sum = (row: number) =>
    tf.tidy(() => [...new Set((loaded.execute(tf.tensor1d([row], 'int32')) as TF.Tensor).dataSync())]);
  expect(sum(rows - 1)).toEqual([1 + 2 + 3 + 4 + 5]);
  expect(sum(rows - 2)).toEqual([0]);
  loaded.dispose();
  expect(nativeMetrics()).toEqual(NOTHING_HELD);
});

large('a single tensor of 4.5 GiB, more than an ArrayBuffer takes', async () => {
  const rows = (4.5 * 2 ** 30) / (16384 * 4);
  const path = writeSparse(join(folder, 'one.safetensors'), { w: rows });
  const open = await fastsafeOpen(path, { framework: tfjs(tf) });
  const tensor = (await open.getTensor('w')) as TF.Tensor2D;
  await open.close();
  expect(nativeMetrics().hostBytes).toBe(4.5 * 2 ** 30);
  const last = tf.tidy(() => [...new Set(tf.slice(tensor, [rows - 1, 0], [1, 16384]).dataSync())]);
  expect(last).toEqual([1]);
  tensor.dispose();
  expect(nativeMetrics()).toEqual(NOTHING_HELD);
});
