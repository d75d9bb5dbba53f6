import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fastsafeOpen, type LoaderOptions, ParallelLoader } from 'fastsafetensors-node';
import { nogds } from '../src/copiers/nogds.js';
import { Device } from '../src/device/device.js';
import { native } from '../src/native/addon.js';
import { encodeFile, entry } from './support/model-files.js';
import { isOnDisk, writeToDisk } from './support/on-disk.js';
import { testFolder } from './support/tensor-files.js';

// odirect: 'auto': files of which hardly anything is in memory are read past the page cache, where a disk is behind
// them.

const folder = testFolder();
const onDisk = isOnDisk(folder);
const test_ = onDisk ? test : test.skip;
if (!onDisk) console.warn(`cold-files.test.ts: skipped what needs a disk: ${folder} is on none`);

const SIZE = 40 << 20;
const data = Buffer.alloc(
  SIZE,
  Uint8Array.from({ length: 251 }, (_, i) => i),
);

function writeShard(name: string): string {
  return writeToDisk(join(folder, name), encodeFile([{ ...entry(name, 'U8', [SIZE]), bytes: data }]));
}

async function load(files: string | string[], options: LoaderOptions = {}): Promise<readonly string[]> {
  await using loader = new ParallelLoader({ files, ...options });
  for await (const [, tensor] of loader.iterateWeights()) {
    expect(Buffer.compare(await tensor.toHost(), data)).toBe(0);
    tensor.dispose();
  }
  return loader.report.notes;
}

/** Drops files from the page cache, as dropCache does after the last read. */
const evict = (files: string | string[]): Promise<unknown> => load(files, { dropCache: true, odirect: false });
const directly = [expect.stringContaining('O_DIRECT')];

test_('a file that is not in memory is read directly, and one that is through the page cache', async () => {
  const path = writeShard('a.safetensors');
  expect(await load(path)).toEqual([]); // as it was written
  await evict(path);
  expect(await load(path)).toEqual(directly);
  expect(await load(path)).toEqual(directly); // nothing has brought it in
  expect(await load(path, { odirect: false })).toEqual([]);
  expect(await load(path)).toEqual([]);
});

test_('of many files a few may be in memory', async () => {
  const files = Array.from({ length: 9 }, (_, i) => writeShard(`many-${i}.safetensors`));
  await evict(files);
  readFileSync(files[4]!);
  expect(await load(files)).toEqual(directly);
  for (const path of files.slice(0, 3)) readFileSync(path);
  expect(await load(files)).toEqual([]);
});

test_('a small load, mmap: true and odirect: false read through the page cache', async () => {
  const path = writeShard('b.safetensors');
  await evict(path);
  await using file = await fastsafeOpen(path);
  (await file.getSlice('b.safetensors', { start: 0, stop: 1 << 20 })).dispose();
  await evict(path);
  expect(await load(path, { odirect: false })).toEqual([]);
  await evict(path);
  expect(await load(path, { mmap: true })).toEqual([expect.stringContaining('mapped')]);
});

test('only what a disk is behind is cold, and what is not there is not', async () => {
  const ranges = Float64Array.of(0, SIZE);
  expect(await native().areCold([{ path: join(folder, 'absent') }], ranges)).toBe(false);
  expect(await native().areCold([{ path: folder }], ranges)).toBe(false);
  expect(await native().areCold([{ path: '/dev/zero' }], ranges)).toBe(false);
  expect(await native().areCold([{ path: '/proc/self/status' }], ranges)).toBe(false);
  expect(await native().areCold([], new Float64Array(0))).toBe(false);
  expect(await native().areCold([{ path: __filename }], Float64Array.of(5, 5))).toBe(false);
});

test.each([
  [{}, true],
  [{ odirect: 'auto', dropCache: true }, true],
  [{ odirect: false }, false],
  [{ odirect: true }, false],
  [{ mmap: true }, false],
] as const)('with %j a cold file is read in another way: %s', (options, differs) => {
  const spec = nogds(Device.parse('cpu'), options);
  expect(spec.ifCold).toEqual(differs ? { ...spec.reader, direct: true } : undefined);
});
