import { rm } from 'node:fs/promises';
import { type DeviceTensor, type Framework, fastsafeOpen, type OpenFiles } from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// fastsafeOpen(): several tensors as one load, and a filter that is asked once for each tensor.

const ENTRIES = ['a', 'b', 'c', 'd'].map((name, i) => entry(name, i === 3 ? 'I32' : 'F32', [i + 1, 8]));
let folder: string;
let files: string[];
beforeAll(async () => {
  folder = await newFolder();
  files = [
    await writeModel(folder, ENTRIES.slice(0, 2), '1.safetensors'),
    await writeModel(folder, ENTRIES.slice(2), '2.safetensors'),
  ];
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(expectNothingHeld);

const bytesOf = (name: string): Uint8Array => ENTRIES.find((one) => one.name === name)!.bytes;

test('getTensors() gives what was asked for, in that order, by one load over several files', async () => {
  await using opened = await fastsafeOpen(files);
  const tensors = await opened.getTensors(new Set(['d', 'a', 'c']));
  expect([...tensors.keys()]).toEqual(['d', 'a', 'c']);
  for (const [name, tensor] of tensors) {
    expect(tensor.name).toBe(name);
    expect(Buffer.compare(await tensor.toHost(), bytesOf(name))).toBe(0);
    tensor.dispose();
  }
  expect(await opened.getTensors([])).toEqual(new Map());
  const twice = await opened.getTensors(['b', 'b']);
  expect(twice.size).toBe(1);
  twice.get('b')!.dispose();
});

test('it takes what getTensor() takes', async () => {
  await using opened = await fastsafeOpen(files, { filter: (name) => name !== 'b' });
  const tensors = await opened.getTensors(['a', 'd'], { dtype: 'F16' });
  expect([...tensors.values()].map(({ dtype }) => dtype)).toEqual(['F16', 'I32']);
  for (const tensor of tensors.values()) tensor.dispose();
  await expect(opened.getTensors(['a', 'b'])).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: 'b' });
  await expect(opened.getTensors('a')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(opened.getTensors([1 as never])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(opened.getTensors(['a'], { dtyp: 'F16' } as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await opened.close();
  await expect(opened.getTensors(['a'])).rejects.toMatchObject({ code: 'CLOSED' });
});

test('no tensor is left where a framework refuses one', async () => {
  let alive = 0;
  const framework: Framework<{ dispose(): void }> = {
    name: 'refusing',
    adopt: (tensor: DeviceTensor) => {
      if (tensor.name === 'b') throw new Error('not b');
      ++alive;
      return {
        dispose: () => {
          --alive;
          tensor.dispose();
        },
      };
    },
  };
  await using opened = await fastsafeOpen(files, { framework });
  await expect(opened.getTensors(['a', 'b', 'c'])).rejects.toThrow('not b');
  expect(alive).toBe(0);
});

test('a filter is asked once for each tensor, when files are opened', async () => {
  const asked: string[] = [];
  const filter = (name: string): boolean => {
    asked.push(name);
    return name !== 'c';
  };
  await using opened: OpenFiles = await fastsafeOpen(files, { filter });
  expect(opened.keys()).toEqual(['a', 'b', 'd']);
  expect(opened.keys()).toEqual(['a', 'b', 'd']);
  (await opened.getTensor('a')).dispose();
  (await opened.getSlice('a', 0)).dispose();
  expect(() => opened.frame('c')).toThrow(expect.objectContaining({ code: 'UNKNOWN_TENSOR' }));
  expect(asked).toEqual(['a', 'b', 'c', 'd']);
});
