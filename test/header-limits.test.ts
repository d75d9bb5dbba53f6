import { rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { ParallelLoader, registerCopier, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { native } from '../src/native/addon';
import { unpackHeader } from '../src/safetensors/metadata';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';
import { LOADERS } from './support/read-back.js';

// timeoutMs and stallTimeoutMs count from the first look at a file on. (hung-store.test.ts has the same with a real
// mount that hangs.)

const addon = native();
const { readHeader } = addon;
const never = (): Promise<never> => new Promise(() => {});

let folder: string;
let files: string[];
beforeEach(async () => {
  folder = await newFolder();
  files = await Promise.all(
    Array.from({ length: 12 }, (_, i) => writeModel(folder, [entry(`${i}`, 'U8', [16])], `${i}.safetensors`)),
  );
});
afterEach(async () => {
  jest.restoreAllMocks();
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

describe.each(Object.entries(LOADERS))('%s', (_, load) => {
  test.each([
    ['STALLED', { stallTimeoutMs: 250 }, 'stallTimeoutMs'],
    ['TIMEOUT', { timeoutMs: 250 }, 'raise timeoutMs'],
  ])('a header that never comes is %s', async (code, limits, advice) => {
    const hangs = files[3]!;
    jest.spyOn(addon, 'readHeader').mockImplementation((path, ...rest) => {
      return path === hangs ? never() : readHeader(path, ...rest);
    });
    const said = new RegExp(`waiting for the header of ${hangs} for \\d+ ms.*${advice}`);
    const message = expect.stringMatching(said);
    await expect(load(files, limits)).rejects.toMatchObject({ code, path: hangs, message });
  });

  test.each([
    ['STALLED', { stallTimeoutMs: 250 }],
    ['TIMEOUT', { timeoutMs: 250 }],
  ])('a mount that nobody knows of is %s when it is looked for', async (code, limits) => {
    jest.spyOn(addon, 'resolveThreeFsMount').mockImplementation(never);
    const message = expect.stringContaining(`waiting for the mount of ${folder}`);
    await expect(load(files, { ...limits, copier: 'auto' })).rejects.toMatchObject({ code, message });
  });
});

test('headers that come slowly are not STALLED, however many they are', async () => {
  let before: Promise<unknown> = Promise.resolve();
  jest.spyOn(addon, 'readHeader').mockImplementation(async (...call) => {
    const mine = before.then(() => setTimeout(50));
    before = mine;
    await mine;
    return readHeader(...call);
  });
  const loader = new SafeTensorsFileLoader({ stallTimeoutMs: 300 });
  await loader.addFilenames(files);
  expect(loader.keys()).toHaveLength(12);
  await loader.close();
});

test('nor is one whose bytes come slowly', async () => {
  let bytes = 0;
  jest.spyOn(addon, 'progressOf').mockImplementation(() => bytes);
  jest.spyOn(addon, 'readHeader').mockImplementation(async (...call) => {
    for (; bytes < 12; ++bytes) await setTimeout(50);
    return readHeader(...call);
  });
  const loader = new SafeTensorsFileLoader({ stallTimeoutMs: 300 });
  await loader.addFilenames(files[0]!);
  expect(loader.keys()).toHaveLength(1);
  await loader.close();
});

test('a header tells how much of it was read', async () => {
  const progress = addon.newProgress();
  const { headerLength } = unpackHeader(await readHeader(files[0]!, false, undefined, progress));
  expect(addon.progressOf(progress)).toBe(8 + headerLength + 16); // the first read takes what is behind it, too
});

registerCopier('late', mockCopier({ delayMs: 400 }));

test.each(['ParallelLoader, in order', 'SafeTensorsFileLoader'])(
  '%s has one deadline for headers and data',
  async (name) => {
    jest.spyOn(addon, 'readHeader').mockImplementation(async (...call) => {
      await setTimeout(400);
      return readHeader(...call);
    });
    const loaded = LOADERS[name]!([files[0]!], { copier: 'late', timeoutMs: 600 });
    await expect(loaded).rejects.toMatchObject({ code: 'TIMEOUT' });
  },
);

test('a SafeTensorsFileLoader does not count the time between headers and data', async () => {
  const loader = new SafeTensorsFileLoader({ timeoutMs: 1500 });
  await loader.addFilenames(files);
  await setTimeout(1600);
  await (await loader.copyFilesToDevice()).close();
  await loader.close();
});

test('a load that gave up the look for its mount leaves the choice to the next one', async () => {
  let answer = (): void => {};
  const asked = new Promise<void>((resolve) => {
    answer = resolve;
  });
  const looks = jest.spyOn(addon, 'resolveThreeFsMount').mockImplementation(async () => {
    await asked;
    return { mountPoint: folder, blockSize: 0, notOnMount: [] };
  });
  const questions = jest.spyOn(addon, 'threeFsAvailability').mockResolvedValue({ available: false });
  const loader = new ParallelLoader({ files, stallTimeoutMs: 250 });
  for (let i = 0; i < 2; ++i) await expect(loader.iterateWeights().next()).rejects.toMatchObject({ code: 'STALLED' });
  answer();
  let tensors = 0;
  for await (const [, tensor] of loader.iterateWeights()) {
    tensor.dispose();
    ++tensors;
  }
  const asks = [looks, questions].map(({ mock }) => mock.calls.length);
  expect({ tensors, asks }).toEqual({ tensors: 12, asks: [1, 1] });
  await loader.close();
});

test('a load asks for at most 8 files at a time, so that one that hangs leaves threads to others', async () => {
  const names = files.map((file) => basename(file));
  const index = join(folder, 'model.safetensors.index.json');
  await writeFile(index, JSON.stringify({ weight_map: Object.fromEntries(names.map((name, i) => [`${i}`, name])) }));
  let asking = 0;
  let most = 0;
  const { realPath } = addon;
  jest.spyOn(addon, 'realPath').mockImplementation(async (path) => {
    most = Math.max(most, ++asking);
    await setTimeout(5);
    --asking;
    return realPath(path);
  });
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(index);
  expect({ most, tensors: loader.keys().length }).toEqual({ most: 8, tensors: 12 });
  await loader.close();
});
