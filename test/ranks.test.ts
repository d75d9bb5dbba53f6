import { rm } from 'node:fs/promises';
import {
  fastsafeOpen,
  type LoaderOptions,
  ParallelLoader,
  SafeTensorsFileLoader,
  ThreeFSLoader,
} from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// Files by rank, on the one rank there is: a rank without files has no tensors, as in fastsafetensors.

let folder: string;
let path: string;
beforeAll(async () => {
  folder = await newFolder();
  path = await writeModel(folder, [entry('w', 'F32', [2, 3])]);
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(() => expectNothingHeld());

const EMPTY: [string, Parameters<SafeTensorsFileLoader['addFilenames']>[0]][] = [
  ['{ 0: [] }', { 0: [] }],
  ['{}', {}],
  ['a Map of nothing', new Map()],
  ['a Map of an empty Set', new Map([[0, new Set<string>()]])],
];

describe.each(EMPTY)('%s', (_, files) => {
  test.each<[string, new (options: LoaderOptions) => SafeTensorsFileLoader, LoaderOptions]>([
    ['SafeTensorsFileLoader', SafeTensorsFileLoader, {}],
    ['SafeTensorsFileLoader with progress', SafeTensorsFileLoader, { onProgress: () => {}, timeoutMs: 1000 }],
    ['ThreeFSLoader without a 3FS', ThreeFSLoader, {}],
  ])('%s has no tensors', async (_, Loader, options) => {
    await using loader = new Loader(options);
    await loader.addFilenames(files);
    expect(loader.keys()).toEqual([]);
    expect(loader.estimate()).toEqual({ deviceBytes: 0, stagingBytes: 0, tensors: 0 });
    await using buffer = await loader.copyFilesToDevice();
    expect(buffer.keys()).toEqual([]);
    expect((await buffer.asDict({})).size).toBe(0);
    await expect(buffer.getTensor('w')).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
    expect(loader.report).toMatchObject({ files: 0, tensors: 0, bytes: 0, fallbacks: [] });
  });

  test('files may follow it', async () => {
    await using loader = new SafeTensorsFileLoader();
    await loader.addFilenames(files);
    await (await loader.copyFilesToDevice()).close();
    await loader.addFilenames({ 0: path });
    await loader.addFilenames(files);
    expect(loader.keys()).toEqual(['w']);
    await using buffer = await loader.copyFilesToDevice();
    expect(buffer.getShape('w')).toEqual([2, 3]);
    expect(loader.report).toMatchObject({ files: 1, tensors: 1 });
  });

  test('fastsafeOpen opens nothing', async () => {
    await using opened = await fastsafeOpen(files);
    expect(opened.keys()).toEqual([]);
    expect(opened.metadata().size).toBe(0);
    await expect(opened.getTensor('w')).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
  });
});

test('an empty list that is no rank’s is a mistake, as it was', async () => {
  await using loader = new SafeTensorsFileLoader();
  await expect(loader.addFilenames([])).rejects.toMatchObject({ code: 'NO_FILES' });
  await expect(fastsafeOpen([])).rejects.toMatchObject({ code: 'NO_FILES' });
});

test('fastsafeOpen takes files by rank', async () => {
  for (const files of [{ 0: path }, { 0: [path] }, new Map([[0, [path]]])]) {
    await using opened = await fastsafeOpen(files);
    using tensor = await opened.getTensor('w');
    expect(tensor.shape).toEqual([2, 3]);
  }
  await expect(fastsafeOpen({ 1: path })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

test('pg: null is one rank', async () => {
  await using loader = new SafeTensorsFileLoader({ pg: null });
  await loader.addFilenames({ 0: path });
  await using buffer = await loader.copyFilesToDevice();
  using tensor = (await buffer.pushTensor('w', 0))!;
  expect(tensor.shape).toEqual([2, 3]);
  await using opened = await fastsafeOpen({ 0: path }, { pg: null });
  expect(opened.keys()).toEqual(['w']);
  await using parallel = new ParallelLoader({ files: path, pg: null, progress: true });
  for await (const [, each] of parallel.iterateWeights()) each.dispose();
});
