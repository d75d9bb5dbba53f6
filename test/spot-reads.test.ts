import { rm } from 'node:fs/promises';
import { setImmediate, setTimeout } from 'node:timers/promises';
import {
  type DeviceTensor,
  fastsafeOpen,
  type LoaderOptions,
  nativeMetrics,
  type OpenFiles,
} from 'fastsafetensors-node';
import { MappedRegions } from '../src/loaders/mapped-regions.js';
import { native } from '../src/native/addon.js';
import { fileChanges } from './support/file-changes.js';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// Small tensors of files that are open are read by the thread that asks, where their bytes are in memory; all others,
// and all that goes wrong, are a load's.

const KIB = 1024;
const SMALL = Array.from({ length: 40 }, (_, i) => entry(`s${i}`, 'F32', [1 + 128 * i]));
const ENTRIES = [...SMALL, entry('empty', 'U8', [0]), entry('large', 'U8', [600 * KIB])];

let folder: string;
let path: string;
let opened: OpenFiles;
let spots: jest.SpyInstance;
let loads: jest.SpyInstance;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
  spots = jest.spyOn(native(), 'readOnSpot');
  loads = jest.spyOn(native(), 'startTransfer');
});
afterEach(async () => {
  await opened.close();
  spots.mockRestore();
  loads.mockRestore();
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

/** Opens the file and waits until it may be read on the spot, or would be. */
async function open(options: LoaderOptions = {}): Promise<void> {
  opened = await fastsafeOpen(path, options);
  (await opened.getTensor('s1')).dispose();
  for (let i = 0; i < 200 && nativeMetrics().openFiles === 0; ++i) await setTimeout(1);
  await setTimeout(5);
  spots.mockClear();
  loads.mockClear();
}

async function expectRight(tensors: Iterable<DeviceTensor>): Promise<void> {
  for (const tensor of tensors) {
    const { dtype, shape, bytes } = ENTRIES.find(({ name }) => name === tensor.name)!;
    expect(tensor).toMatchObject({ dtype, shape, byteLength: bytes.length });
    expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
    if (bytes.length > 0) expect(tensor.pointer % 256n).toBe(0n);
    tensor.dispose();
  }
}

test('a tensor of a file that was read from is read on the spot', async () => {
  await open();
  for (const { name } of [...SMALL, ENTRIES[40]!]) await expectRight([await opened.getTensor(name)]);
  expect(loads).not.toHaveBeenCalled();
  expect(spots).toHaveBeenCalledTimes(40);
  expect(nativeMetrics().openFiles).toBe(1);
});

test('an empty one needs no memory', async () => {
  await open();
  await expectRight([await opened.getTensor('empty')]);
  await expectRight((await opened.getTensors(['empty'])).values());
  expect(spots).not.toHaveBeenCalled();
  expect(loads).not.toHaveBeenCalled();
});

describe('of one turn of the event loop', () => {
  let allocations: jest.SpyInstance;
  beforeEach(() => {
    allocations = jest.spyOn(native(), 'allocateOnSpot');
  });
  afterEach(() => allocations.mockRestore());

  test('all but the first share allocations', async () => {
    await open();
    const kept: DeviceTensor[] = [];
    for (const { name } of SMALL) kept.push(await opened.getTensor(name));
    expect(spots).toHaveBeenCalledTimes(40);
    const bytes = SMALL.reduce((sum, entry) => sum + entry.bytes.length + 255, 0);
    expect(allocations.mock.calls.length).toBeLessThanOrEqual(1 + Math.ceil(bytes / (236 * KIB)));
    await expectRight(kept);
  });

  test('what was disposed is used again', async () => {
    await open({ mmap: false });
    for (let i = 0; i < 120; ++i) (await opened.getTensor('s39')).dispose();
    expect(allocations.mock.calls.length).toBeLessThanOrEqual(2);
  });

  test('what a typed array is of is not', async () => {
    await open({ mmap: false });
    const readAndCompare = async (): Promise<void> => {
      const arrays: [Uint8Array, (typeof SMALL)[number]][] = [];
      for (const entry of [...SMALL, ...SMALL]) {
        using tensor = await opened.getTensor(entry.name);
        const { buffer, byteOffset, byteLength } = tensor.data;
        arrays.push([new Uint8Array(buffer, byteOffset, byteLength), entry]);
      }
      for (const [array, { bytes }] of arrays) expect(Buffer.compare(array, bytes)).toBe(0);
    };
    await readAndCompare();
    await opened.close();
    await expectNothingHeld({ collect: true });
  });

  test('nothing is kept for later ones', async () => {
    await open();
    for (let i = 0; i < 10; ++i) (await opened.getTensor('s39')).dispose();
    for (let i = 0; i < 200 && nativeMetrics().hostBytes > 0; ++i) await setTimeout(1);
    expect(nativeMetrics().hostBytes).toBe(0);
  });
});

test('several are one read, in one allocation', async () => {
  await open();
  const names = SMALL.slice(0, 16).map(({ name }) => name);
  await expectRight((await opened.getTensors([...names, 'empty', names[3]!])).values());
  expect(spots).toHaveBeenCalledTimes(1);
  expect(loads).not.toHaveBeenCalled();
});

test('large ones are loaded', async () => {
  await open({ mmap: false }); // a mapped one lies where its file has it
  await expectRight([await opened.getTensor('large')]);
  await expectRight((await opened.getTensors(['s1', 'large'])).values());
  expect(spots).not.toHaveBeenCalled();
  expect(loads).toHaveBeenCalledTimes(2);
});

test('what is not in memory is loaded', async () => {
  await open();
  spots.mockReturnValue(false);
  await expectRight([await opened.getTensor('s7')]);
  await expectRight((await opened.getTensors(['s7', 's9'])).values());
  expect(loads).toHaveBeenCalledTimes(2);
});

test.each<[string, LoaderOptions]>([
  ['dtype', { dtype: 'F16' }],
  ['maxBytesPerSecond', { maxBytesPerSecond: 1e9 }],
  ['staging', { staging: 'always' }],
  ['odirect', { odirect: true }],
  ['mmap', { mmap: true }],
])('%s leaves all to loads', async (_, options) => {
  await open(options);
  (await opened.getTensor('s7')).dispose();
  expect(spots).not.toHaveBeenCalled();
  expect(loads).toHaveBeenCalledTimes(1);
});

test.each(fileChanges(ENTRIES))('a file that was %s is FILE_CHANGED', async (_, change) => {
  await open();
  (await opened.getTensor('s7')).dispose();
  change(path);
  for (let i = 0; i < 2; ++i)
    await expect(opened.getTensor('s7')).rejects.toMatchObject({ code: 'FILE_CHANGED', path });
  await expect(opened.getTensors(['s1', 's2'])).rejects.toMatchObject({ code: 'FILE_CHANGED', path });
});

test('one turn of the event loop reads so many tensors and no more', async () => {
  await open({ mmap: false });
  await setImmediate();
  const reads = Array.from({ length: 1000 }, () => opened.getTensor('s3'));
  const perTurn: number[] = [];
  for (let before = 0; before < 1000; before = spots.mock.calls.length) {
    perTurn.push(spots.mock.calls.length - before);
    await setImmediate();
  }
  expect(perTurn.every((count) => count <= 128)).toBe(true);
  expect(perTurn.length).toBeGreaterThanOrEqual(7);
  expect(loads).not.toHaveBeenCalled();
  await expectRight(await Promise.all(reads));
});

test('a turn ends once, also where what it was asked for first is no view and no read', async () => {
  await open();
  await setImmediate();
  const turns = jest.spyOn(MappedRegions.prototype, 'noteTurn');
  const loaded = Array.from({ length: 20 }, () => opened.getTensor('large'));
  expect(turns).toHaveBeenCalledTimes(1);
  for (const tensor of await Promise.all(loaded)) tensor.dispose();
  turns.mockRestore();
});

test('one after the other they leave the event loop its turns', async () => {
  await open({ mmap: false });
  let turns = 0;
  let running = true;
  const counting = (async () => {
    for (; running; ++turns) await setImmediate();
  })();
  for (let i = 0; i < 1000; ++i) (await opened.getTensor('s3')).dispose();
  running = false;
  await counting;
  expect(turns).toBeGreaterThanOrEqual(7);
});

test('close() ends those that wait for their turn', async () => {
  await open({ mmap: false });
  const reads = Array.from({ length: 300 }, () => opened.getTensor('s3'));
  const settled = Promise.allSettled(reads);
  await opened.close();
  const outcomes = await settled;
  for (const outcome of outcomes) if (outcome.status === 'fulfilled') outcome.value.dispose();
  expect(outcomes.slice(0, 128).every(({ status }) => status === 'fulfilled')).toBe(true);
  for (const outcome of outcomes.slice(128)) expect(outcome).toMatchObject({ reason: { code: 'CLOSED' } });
  await expect(opened.getTensor('s3')).rejects.toMatchObject({ code: 'CLOSED' });
});

test('loads that follow one another open their file once', async () => {
  const openings = jest.spyOn(native(), 'openSpotFile');
  await open({ mmap: false });
  for (let i = 0; i < 20; ++i) (await opened.getTensor('large')).dispose();
  await setTimeout(5);
  expect(openings).toHaveBeenCalledTimes(1);
  openings.mockRestore();
  await expectRight([await opened.getTensor('s7')]);
  expect(spots).toHaveBeenCalledTimes(1);
});

test('a descriptor that was taken away is opened again', async () => {
  await open();
  const other = await fastsafeOpen(path); // its load takes the one that is open, and closes it
  (await other.getTensor('large')).dispose();
  await other.close();
  await expectRight([await opened.getTensor('s7')]);
  await setTimeout(20);
  spots.mockClear();
  await expectRight([await opened.getTensor('s7')]);
  expect(spots).toHaveBeenCalledTimes(1);
});
