import { closeSync, openSync, truncateSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate, setTimeout } from 'node:timers/promises';
import {
  type DeviceTensor,
  fastsafeOpen,
  type LoaderOptions,
  nativeMetrics,
  type OpenFiles,
} from 'fastsafetensors-node';
import * as timers from '../src/base/timers.js';
import { native } from '../src/native/addon.js';
import { fileChanges } from './support/file-changes.js';
import { expectNothingHeld } from './support/metrics.js';
import { encodeFile, entry, newFolder, writeModel } from './support/model-files.js';

// Small tensors of files that many are read from are views of the mapped file, once each. What becomes of the file
// afterwards reaches none of them; whatever cannot be handed out so is read.

const ENTRIES = [
  ...Array.from({ length: 200 }, (_, i) => entry(`t${i}`, 'F32', [5000 + i])),
  entry('bytes', 'U8', [5]),
  entry('misaligned', 'F32', [1000]),
];

let folder: string;
let path: string;
let opened: OpenFiles;
let mappings: jest.SpyInstance;
let spots: jest.SpyInstance;
let loads: jest.SpyInstance;
let unmappings: jest.SpyInstance;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
  mappings = jest.spyOn(native(), 'mapRegion');
  spots = jest.spyOn(native(), 'readOnSpot');
  loads = jest.spyOn(native(), 'startTransfer');
  unmappings = jest.spyOn(native(), 'releaseMapping');
});
afterEach(async () => {
  await opened.close();
  jest.restoreAllMocks();
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

/** Loads a tensor again and again, until it is read without a load. */
async function untilReadOnSpot(): Promise<void> {
  for (let before = -1; before < loads.mock.calls.length; await setTimeout(5)) {
    before = loads.mock.calls.length;
    (await opened.getTensor('t0')).dispose();
  }
}

/** Reads the first 80 tensors, after which the file is mapped, or would be. */
async function open(options: LoaderOptions = {}): Promise<void> {
  opened = await fastsafeOpen(path, options);
  await untilReadOnSpot();
  for (let i = 0; i < 80; ++i) (await opened.getTensor(`t${i}`)).dispose();
  for (const { value } of mappings.mock.results) await value.catch(() => {});
  await setTimeout(5);
  spots.mockClear();
  loads.mockClear();
}

function expectRight(tensors: Iterable<DeviceTensor>): void {
  for (const { name, dtype, shape, data } of tensors) {
    const { bytes, ...expected } = ENTRIES.find((each) => each.name === name)!;
    expect({ dtype, shape }).toEqual({ dtype: expected.dtype, shape: expected.shape });
    expect(Buffer.compare(Buffer.from(data.buffer, data.byteOffset, data.byteLength), bytes)).toBe(0);
  }
}

function expectViews(): void {
  expect(spots).not.toHaveBeenCalled();
  expect(loads).not.toHaveBeenCalled();
}

/** Some tensors as views. */
async function viewed(names = ['t100', 't101', 't199']): Promise<DeviceTensor[]> {
  const tensors: DeviceTensor[] = [];
  for (const name of names) tensors.push(await opened.getTensor(name));
  expectViews();
  return tensors;
}

function disposeAll(tensors: Iterable<DeviceTensor>): void {
  for (const tensor of tensors) tensor.dispose();
}

test('tensors of a file that many were read from are views of it', async () => {
  await open();
  expect(mappings).toHaveBeenCalledTimes(1);
  expect(nativeMetrics()).toMatchObject({ hostBytes: 0 });
  expect(nativeMetrics().mappedBytes).toBeGreaterThan(0);
  const names = Array.from({ length: 120 }, (_, i) => `t${80 + i}`);
  const one = await viewed(names.slice(0, 40));
  const atATime = await Promise.all(names.slice(40, 80).map((name) => opened.getTensor(name)));
  const several = await opened.getTensors(names.slice(80));
  expect([...several.keys()]).toEqual(names.slice(80));
  expectViews();
  const tensors = [...one, ...atATime, ...several.values()];
  expect(tensors.map(({ name }) => name)).toEqual(names);
  expectRight(tensors);
  disposeAll(tensors);
});

test('a tensor is a view once, and what is written to it stays in it', async () => {
  await open();
  const [first] = await viewed(['t100']);
  (first!.data as Float32Array)[0] = 42;
  const again = [await opened.getTensor('t100'), ...(await opened.getTensors(['t100', 't102'])).values()];
  expectRight(again);
  expect(spots.mock.results).toMatchObject([{ value: true }, { value: true }]); // and no load
  (again[0]!.data as Float32Array)[1] = 43;
  expect((first!.data as Float32Array)[0]).toBe(42);
  expect(Buffer.from(first!.data.buffer, first!.data.byteOffset + 4, 4)).toEqual(
    Buffer.from(ENTRIES[100]!.bytes.subarray(4, 8)),
  );
  disposeAll([first!, ...again]);
});

test('one that does not lie at a multiple of its element is copied', async () => {
  await open();
  const tensors = [await opened.getTensor('misaligned')];
  expect(spots).toHaveBeenCalledTimes(1);
  expectRight(tensors);
  expect(tensors[0]!.pointer % 256n).toBe(0n);
  disposeAll(tensors);
});

const CHANGES = fileChanges(ENTRIES);
CHANGES.push(['emptied', (path) => truncateSync(path, 0)]);
test.each(CHANGES)('of a file that was %s views stay as they are, and others are FILE_CHANGED', async (_, change) => {
  await open();
  const tensors = await viewed();
  change(path);
  expectRight(tensors);
  await expect(opened.getTensor('t150')).rejects.toMatchObject({ code: 'FILE_CHANGED', path });
  await expect(opened.getTensors(['t1', 't151'])).rejects.toMatchObject({ code: 'FILE_CHANGED', path });
  expectRight(tensors);
  disposeAll(tensors);
});

test('a writer who changes nothing is let in, and the file is read after that', async () => {
  await open();
  const tensors = await viewed();
  closeSync(openSync(path, 'r+'));
  await setImmediate();
  const others = [await opened.getTensor('t150')];
  expect(spots).toHaveBeenCalledTimes(1);
  expectRight([...tensors, ...others]);
  disposeAll([...tensors, ...others]);
});

test('views and their arrays outlive close() and dispose()', async () => {
  await open();
  const tensors = await viewed();
  const arrays = tensors.map(({ data }) => data);
  await opened.close();
  expectRight(tensors);
  disposeAll(tensors);
  truncateSync(path, 0);
  for (const [i, name] of ['t100', 't101', 't199'].entries()) {
    const { buffer, byteOffset, byteLength } = arrays[i]!;
    const { bytes } = ENTRIES.find((each) => each.name === name)!;
    expect(Buffer.compare(Buffer.from(buffer, byteOffset, byteLength), bytes)).toBe(0);
  }
});

test('nothing is held of a region that is being mapped when all is closed', async () => {
  opened = await fastsafeOpen(path);
  await untilReadOnSpot();
  for (let i = 0; mappings.mock.calls.length === 0; ++i) (await opened.getTensor(`t${i}`)).dispose();
  await opened.close();
  await expectNothingHeld();
});

describe('what has not been seen in memory for a second', () => {
  test('is read, and is a view when it was seen again', async () => {
    await open();
    const looks = jest.spyOn(native(), 'isRegionResident');
    await setTimeout(1050);
    const tensors = [await opened.getTensor('t100')];
    expect(spots).toHaveBeenCalledTimes(1);
    expect(looks).toHaveBeenCalledTimes(1);
    await looks.mock.results[0]!.value;
    await setTimeout(5);
    spots.mockClear();
    tensors.push(...(await viewed(['t101', 't102'])));
    expect(looks).toHaveBeenCalledTimes(1);
    expectRight(tensors);
    disposeAll(tensors);
  });

  test.each([
    ['is not there', () => Promise.resolve(false)],
    ['cannot be looked at', () => Promise.reject({ code: 'IO_ERROR', message: 'EIO' })],
  ])('is no view any more where it %s', async (_, answer) => {
    await open();
    const kept = await viewed();
    jest.spyOn(native(), 'isRegionResident').mockImplementation(answer);
    await setTimeout(1050);
    for (const name of ['t110', 't111']) {
      const tensors = [await opened.getTensor(name)];
      expectRight(tensors);
      disposeAll(tensors);
      await setTimeout(5);
    }
    expect(spots).toHaveBeenCalledTimes(2);
    expectRight(kept);
    disposeAll(kept);
  });
});

describe('nothing stays mapped', () => {
  async function expectUnmapped(): Promise<void> {
    for (let i = 0; i < 1000 && nativeMetrics().mappedBytes > 0; ++i) await setTimeout(5);
    expect(nativeMetrics().mappedBytes).toBe(0);
  }

  test('of which all tensors were handed out and disposed', async () => {
    path = join(folder, 'aligned.safetensors');
    const encoded = [0, 1, 2, 3].map((padding) => encodeFile(ENTRIES.slice(0, 200), { padding }));
    writeFileSync(path, encoded.find(({ length }) => length % 4 === 0)!);
    await open();
    const tensors = await viewed(ENTRIES.slice(0, 199).map(({ name }) => name));
    expect(unmappings).not.toHaveBeenCalled();
    tensors.push(...(await viewed(['t199'])));
    expect(unmappings).toHaveBeenCalledTimes(1);
    disposeAll(tensors);
    await expectUnmapped();
  });

  test('of a file that a writer has come for', async () => {
    const filler = { ...entry('filler', 'U8', [0]), shape: [2 ** 26], bytes: Buffer.alloc(2 ** 26) };
    path = await writeModel(folder, [...ENTRIES.slice(0, 100), filler, ...ENTRIES.slice(100, 200)], 'two.safetensors');
    await open();
    for (let i = 120; i < 190; ++i) (await opened.getTensor(`t${i}`)).dispose();
    for (const { value } of mappings.mock.results) await value;
    await setTimeout(5);
    spots.mockClear();
    disposeAll(await viewed(['t0', 't199']));
    closeSync(openSync(path, 'r+'));
    await setImmediate();
    (await opened.getTensor('t1')).dispose();
    expect(unmappings).toHaveBeenCalledTimes(2);
    await expectUnmapped();
  });

  test('that nobody has used for some seconds', async () => {
    await open();
    disposeAll(await viewed());
    expect(nativeMetrics().mappedBytes).toBeGreaterThan(0);
    for (let i = 0; i < 5000 && unmappings.mock.calls.length === 0; ++i) await setTimeout(5);
    expect(unmappings).toHaveBeenCalledTimes(1);
    await expectUnmapped();
    for (let i = 0; i < 80; ++i) (await opened.getTensor(`t${i}`)).dispose();
    expect(mappings).toHaveBeenCalledTimes(2); // what is used again is mapped again
  });
});

test('a file of which one tensor is read again and again is not mapped', async () => {
  opened = await fastsafeOpen(path);
  await untilReadOnSpot();
  for (let i = 0; i < 200; ++i) (await opened.getTensor('t0')).dispose();
  expect(mappings).not.toHaveBeenCalled();
});

test('those that wait for a later turn are views', async () => {
  const many = Array.from({ length: 3000 }, (_, i) => entry(`t${i}`, 'U8', [256]));
  path = await writeModel(folder, many, 'many.safetensors');
  await open();
  // All within the second for which pages are believed to be in memory.
  jest.spyOn(timers, 'milliseconds').mockReturnValue(timers.milliseconds());
  const reads = many.slice(80).map(({ name }) => opened.getTensor(name));
  const tensors = await Promise.all(reads);
  expectViews();
  disposeAll(tensors);
});

test('arrays over views hardly count for the garbage collector', async () => {
  await open();
  const tensors = await viewed(Array.from({ length: 120 }, (_, i) => `t${80 + i}`));
  const before = native().externalMemory();
  const arrays = tensors.map(({ data }) => data);
  expect(native().externalMemory() - before).toBeLessThan(500_000); // of 2.5 MB
  expect(arrays).toHaveLength(120);
  disposeAll(tensors);
});

test('a file that is open for writing is copied', async () => {
  const writer = openSync(path, 'r+');
  await open();
  closeSync(writer);
  expect(mappings).toHaveBeenCalledTimes(1);
  const tensors = [await opened.getTensor('t100')];
  expect(spots).toHaveBeenCalledTimes(1);
  expectRight(tensors);
  disposeAll(tensors);
});

test('pages that cannot be brought in are read as before', async () => {
  mappings.mockRejectedValue({ code: 'IO_ERROR', message: 'EIO' });
  await open();
  const tensors = [await opened.getTensor('t100')];
  expect(spots).toHaveBeenCalledTimes(1);
  expectRight(tensors);
  disposeAll(tensors);
});

const FRAMEWORK = { name: 'none', adopt: (tensor: DeviceTensor) => tensor };
test.each<[string, LoaderOptions]>([
  ['mmap: false', { mmap: false }],
  ['a framework', { framework: FRAMEWORK }],
])('%s maps nothing', async (_, options) => {
  await open(options);
  expect(mappings).not.toHaveBeenCalled();
});

test('views leave the event loop its turns', async () => {
  const many = Array.from({ length: 5000 }, (_, i) => entry(`t${i}`, 'F32', [64]));
  path = await writeModel(folder, many, 'many.safetensors');
  await open();
  const tensors: DeviceTensor[] = [];
  let turns = 0;
  let running = true;
  const counting = (async () => {
    for (; running; ++turns) await setImmediate();
  })();
  for (let i = 80; i < 5000; ++i) tensors.push(await opened.getTensor(`t${i}`));
  running = false;
  await counting;
  disposeAll(tensors);
  expect(turns).toBeGreaterThanOrEqual(4);
});
