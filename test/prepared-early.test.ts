import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ParallelLoader, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { native } from '../src/native/addon.js';
import { entry, writeModel } from './support/model-files.js';
import { testFolder } from './support/tensor-files.js';

// What a load needs beside its headers is found while they are read, and once.

const folder = testFolder();
let large: string;
let small: string;

beforeAll(async () => {
  large = await writeModel(folder, [entry('large', 'U8', [40 << 20])], 'large.safetensors'); // worth a look
  small = await writeModel(folder, [entry('small', 'U8', [1000])], 'small.safetensors');
});

afterEach(() => {
  jest.restoreAllMocks();
});

test('the mount is looked up while headers are read, once for them and the load', async () => {
  const order: string[] = [];
  const { resolveThreeFsMount, readHeader } = native();
  const mounts = jest.spyOn(native(), 'resolveThreeFsMount').mockImplementation((...args) => {
    order.push('mount');
    return resolveThreeFsMount(...args);
  });
  jest.spyOn(native(), 'readHeader').mockImplementation(async (...args) => {
    const header = await readHeader(...args);
    order.push('header');
    return header;
  });
  for (const load of [streamed, whole]) {
    await load([large, small]);
    expect(order).toEqual(['mount', 'header', 'header']);
    expect(mounts.mock.lastCall![0]).toEqual([large, small]);
    order.length = 0;
  }
});

test('after files that were refused the mount is that of the next ones', async () => {
  const bad = join(folder, 'bad.safetensors');
  writeFileSync(bad, 'no header');
  const mounts = jest.spyOn(native(), 'resolveThreeFsMount');
  await using loader = new SafeTensorsFileLoader();
  await expect(loader.addFilenames(bad)).rejects.toMatchObject({ code: 'HEADER_TOO_LARGE' });
  await loader.addFilenames(small);
  expect(mounts.mock.calls.map(([files]) => files)).toEqual([[bad], [small]]);
});

test('one look at the page cache is for headers and load, unless the load begins a second later', async () => {
  const looks = jest.spyOn(native(), 'areCold');
  await whole([large]);
  expect(looks).toHaveBeenCalledTimes(1);
  await whole([large], 1100);
  expect(looks).toHaveBeenCalledTimes(3);
  await streamed([large]);
  expect(looks).toHaveBeenCalledTimes(4);
});

async function streamed(files: string[]): Promise<void> {
  await using loader = new ParallelLoader({ files });
  for await (const [, tensor] of loader) tensor.dispose();
}

async function whole(files: string[], pauseMs = 0): Promise<void> {
  await using loader = new SafeTensorsFileLoader();
  await loader.addFilenames(files);
  await sleep(pauseMs);
  await using _ = await loader.copyFilesToDevice();
}
