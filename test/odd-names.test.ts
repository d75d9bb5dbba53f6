import { rm } from 'node:fs/promises';
import {
  FastSafetensorsError,
  fastsafeOpen,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { entry, newFolder, writeModel } from './support/model-files.js';
import { expectSame, LOADERS } from './support/read-back.js';

// Names from a file are data: they reach no prototype and find nothing on one.

const NAMES = [
  '__proto__',
  'constructor',
  'prototype',
  'toString',
  'hasOwnProperty',
  'then',
  '',
  ' ',
  '\u0000',
  '\u202e',
  '🙂',
  'a/b\\c',
];
const ENTRIES = NAMES.map((name) => entry(name, 'U8', [7]));

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
});
afterEach(() => rm(folder, { recursive: true }));

test('odd names load through every loader and touch no prototype', async () => {
  registerCopier('mock', mockCopier());
  const before = Object.getOwnPropertyNames(Object.prototype);
  for (const copier of ['nogds', 'mock']) {
    for (const load of Object.values(LOADERS)) expectSame(await load([path], { copier }), ENTRIES);
  }
  expect(Object.getOwnPropertyNames(Object.prototype)).toEqual(before);
  expect(({} as Record<string, unknown>).dtype).toBeUndefined();
});

test('odd names are found where they are, and only there', async () => {
  const other = await writeModel(folder, [entry('plain', 'U8', [3])], 'other.safetensors');
  const opened = await fastsafeOpen(other);
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(other);
  const buffers = await loader.copyFilesToDevice();
  for (const name of NAMES) {
    for (const get of [opened.getTensor(name), buffers.getTensor(name)]) {
      const error = await get.catch((thrown) => thrown);
      expect(error).toBeInstanceOf(FastSafetensorsError);
      expect(error).toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: name });
    }
    expect(() => loader.getShape(name)).toThrow(expect.objectContaining({ code: 'UNKNOWN_TENSOR' }));
    expect(buffers.getFilename(name)).toBe('');
  }
  await buffers.close();
  await loader.close();
  await opened.close();
});

test('asDict takes and gives odd names', async () => {
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(path);
  const buffers = await loader.copyFilesToDevice();
  const tensors = await buffers.asDict(Object.fromEntries(NAMES.map((name) => [name, 0])));
  expect([...tensors.keys()].sort()).toEqual([...NAMES].sort());
  for (const tensor of tensors.values()) tensor.dispose();
  await buffers.close();
  await loader.close();
});

test('mocked tensors of odd names are taken from own properties only', async () => {
  const tensors = Object.fromEntries(NAMES.slice(0, 3).map((name) => [name, Uint8Array.of(1, 2, 3, 4, 5, 6, 7)]));
  registerCopier('mocked', mockCopier({ tensors }));
  const loader = new ParallelLoader({ files: path, copier: 'mocked' });
  for await (const [name, tensor] of loader.iterateWeights()) {
    const expected =
      name in tensors && Object.hasOwn(tensors, name)
        ? [1, 2, 3, 4, 5, 6, 7]
        : [...ENTRIES[NAMES.indexOf(name)]!.bytes];
    expect([...(await tensor.toHost())]).toEqual(expected);
    tensor.dispose();
  }
  await loader.close();
});
