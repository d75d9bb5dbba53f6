import { mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import * as tf from '@tensorflow/tfjs';
import { loadGraphModel, safetensorsHandler } from '../../adapters/tfjs/index.js';
import { splitTfjs } from '../../src/models/tfjs/split.js';
import { collectedMetrics, NOTHING_HELD, testFolder } from '../support/tensor-files.js';
import { writeGraphModel } from '../support/tf-models.js';

/** Models whose files are links, as in the Hugging Face cache, and paths that are URLs. */
const folder = testFolder();

beforeAll(async () => {
  jest.spyOn(console, 'warn').mockImplementation(() => {});
  await tf.setBackend('cpu');
});
afterEach(async () => {
  expect(tf.memory()).toMatchObject({ numTensors: 0, numDataBuffers: 0 });
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});

/** Moves a file into the folder blobs and links to it. */
function linked(path: string): void {
  const blobs = join(folder, 'blobs');
  mkdirSync(blobs, { recursive: true });
  const blob = join(blobs, `${basename(dirname(path))}-${basename(path)}`);
  renameSync(path, blob);
  symlinkSync(blob, path);
}

async function weightCount(...given: Parameters<typeof loadGraphModel>): Promise<number> {
  const model = (await loadGraphModel(...given)) as tf.GraphModel;
  const count = Object.keys(model.weights).length;
  model.dispose();
  return count;
}

test('a model.json and its weights that are links load; without followLinks they do not', async () => {
  const { graph, files } = await splitTfjs(writeGraphModel(join(folder, 'split')), { maxShardBytes: 20 });
  expect(files.length).toBeGreaterThan(1);
  for (const path of [graph, ...files]) linked(path);
  const count = await weightCount(tf, graph);
  expect(count).toBeGreaterThan(0);
  const model = await tf.loadGraphModel(safetensorsHandler(join(folder, 'split'), { model: graph }));
  expect(Object.keys(model.weights)).toHaveLength(count);
  model.dispose();
  const refused = { code: 'UNSAFE_SHARD_PATH', message: expect.stringContaining('followLinks') };
  await expect(loadGraphModel(tf, graph, { followLinks: false })).rejects.toMatchObject(refused);
  const strict = safetensorsHandler(join(folder, 'split'), { model: graph, followLinks: false });
  await expect(strict.load()).rejects.toMatchObject(refused);
});

test('split-tfjs reads shards through links; without followLinks it does not', async () => {
  const path = writeGraphModel(join(folder, 'shards'));
  linked(join(folder, 'shards', 'group1-shard1.bin'));
  const refused = splitTfjs(path, { out: join(folder, 'refused'), followLinks: false });
  await expect(refused).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH' });
  expect((await splitTfjs(path, { out: join(folder, 'out') })).tensors).toBeGreaterThan(0);
});

test('a repository of the cache is a model, and has its weights', async () => {
  const repository = join(folder, 'models--org--name');
  const snapshot = join(repository, 'snapshots', 'r');
  const { graph, files } = await splitTfjs(writeGraphModel(snapshot));
  for (const path of [graph, ...files]) linked(path);
  mkdirSync(join(repository, 'refs'));
  writeFileSync(join(repository, 'refs', 'main'), 'r');
  const count = await weightCount(tf, graph);
  for (const given of [repository, pathToFileURL(repository), pathToFileURL(repository).href]) {
    expect(await weightCount(tf, given, { weights: given })).toBe(count);
    const model = await tf.loadGraphModel(safetensorsHandler(given));
    expect(Object.keys(model.weights)).toHaveLength(count);
    model.dispose();
  }
});
