import { closeSync, openSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import {
  type DeviceTensor,
  fastsafeOpen,
  type LoaderOptions,
  nativeMetrics,
  ParallelLoader,
  SafeTensorsFileLoader,
  saveFile,
} from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { type Entry, encodeFile, entry, newFolder, writeModel } from './support/model-files.js';

// Tensors that are views of their mapped file: what they share with it, and that nothing which happens to the file
// afterwards reaches them.

const ENTRIES = [
  entry('weight', 'F32', [300, 1000]),
  entry('empty', 'F16', [0, 3]),
  entry('bias', 'BF16', [7777]),
  entry('bytes', 'U8', [333_333]),
];
const BYTES = ENTRIES.reduce((sum, { bytes }) => sum + bytes.byteLength, 0);

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

async function streamed(files: string | string[], options: LoaderOptions = {}) {
  const loader = new ParallelLoader({ files, mmap: true, ...options });
  const tensors: DeviceTensor[] = [];
  for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
  await loader.close();
  return { tensors, report: loader.report };
}

function expectBytes(tensors: Iterable<DeviceTensor>, entries: readonly Entry[] = ENTRIES): void {
  const byName = new Map(entries.map((each) => [each.name, each.bytes]));
  for (const { name, data, byteLength } of tensors) {
    const bytes = byteLength > 0 ? Buffer.from(data!.buffer, data!.byteOffset, data!.byteLength) : Buffer.alloc(0);
    expect(bytes.equals(byName.get(name)!)).toBe(true);
  }
}

function disposeAll(tensors: Iterable<DeviceTensor>): void {
  for (const tensor of tensors) tensor.dispose();
}

test('tensors lie in the mapped file, and count apart', async () => {
  const { tensors, report } = await streamed(path);
  expectBytes(tensors);
  const metrics = nativeMetrics();
  expect(metrics.hostBytes).toBe(0);
  expect(metrics.mappedBytes).toBeGreaterThanOrEqual(BYTES);
  expect(report).toMatchObject({ bytes: BYTES, mappedBytes: BYTES, readBytes: 0 });
  expect(report.notes).toEqual([expect.stringMatching(`${path}: mapped under a read lease`)]);
  for (const { pointer, dtype } of tensors) expect(pointer % (dtype === 'F32' ? 4n : 2n)).toBe(0n);
  disposeAll(tensors);
});

const WRITES: Record<string, (path: string) => void> = {
  'cut short': (path) => truncateSync(path, 100),
  emptied: (path) => truncateSync(path, 0),
  'written over in place': (path) => writeFileSync(path, Buffer.alloc(BYTES, 0xff), { flag: 'r+' }),
  'written anew': (path) => writeFileSync(path, 'nothing'),
  unlinked: (path) => rmSync(path),
  replaced: (path) => {
    writeFileSync(`${path}.new`, 'nothing');
    renameSync(`${path}.new`, path);
  },
};

test.each(Object.keys(WRITES))('tensors stay as they are when their file is %s', async (what) => {
  const { tensors } = await streamed(path);
  WRITES[what]!(path);
  expectBytes(tensors);
  disposeAll(tensors);
});

test.each([true, undefined])(
  'mmap %p: what is written to a tensor stays in it, also when a writer comes',
  async (mmap) => {
    const { tensors, report } = await streamed(path, { mmap });
    expect(report.mappedBytes).toBe(BYTES);
    const before = readFileSync(path);
    const weight = tensors[0]!.data as Float32Array;
    weight[0] = 42;
    weight[299_999] = 43;
    expect(readFileSync(path).equals(before)).toBe(true);
    truncateSync(path, 0);
    expect([weight[0], weight[299_999]]).toEqual([42, 43]);
    weight[1] = 44;
    expect(weight[1]).toBe(44);
    disposeAll(tensors);
  },
);

test.each([true, undefined])('mmap %p: a file may be saved anew from its own tensors', async (mmap) => {
  const first = await streamed(path, { mmap });
  (first.tensors[0]!.data as Float32Array)[0] = 42;
  await saveFile(first.tensors, path);
  const second = await streamed(path, { mmap });
  expect((second.tensors[0]!.data as Float32Array)[0]).toBe(42);
  expectBytes(second.tensors.slice(1));
  expectBytes(first.tensors.slice(1));
  // In place: this thread waits for its own process.
  writeFileSync(path, Buffer.alloc(100));
  expect((first.tensors[0]!.data as Float32Array)[0]).toBe(42);
  expectBytes(first.tensors.slice(1));
  expectBytes(second.tensors.slice(1));
  disposeAll([...first.tensors, ...second.tensors]);
});

test('memory that took the place of a mapping counts as memory', async () => {
  const { tensors } = await streamed(path);
  const { mappedBytes } = nativeMetrics();
  truncateSync(path, 0);
  while (nativeMetrics().mappedBytes > 0) await setTimeout(1);
  expect(nativeMetrics()).toMatchObject({ mappedBytes: 0, hostBytes: mappedBytes });
  disposeAll(tensors);
});

test('two loads of one file have each their own writes', async () => {
  const [first, second] = [await streamed(path), await streamed(path)];
  (first.tensors[0]!.data as Float32Array)[0] = 42;
  expectBytes(second.tensors);
  truncateSync(path, 0);
  expectBytes(second.tensors);
  disposeAll([...first.tensors, ...second.tensors]);
});

test.each(['auto', true] as const)('%s copies a file that somebody has open for writing, and says so', async (mmap) => {
  const writer = openSync(path, 'r+');
  const { tensors, report } = await streamed(path, { mmap });
  closeSync(writer);
  expect(report).toMatchObject({ mappedBytes: 0, readBytes: BYTES });
  expect(report.notes).toEqual([`${path}: copied, not mapped: it is open for writing`]);
  expectBytes(tensors);
  disposeAll(tensors);
});

test.each([false, 'auto'] as const)('mmap: %s copies small files', async (mmap) => {
  const small = await writeModel(folder, [entry('a', 'F32', [100])], 'small.safetensors');
  const { tensors, report } = await streamed(small, { mmap });
  expect(report).toMatchObject({ mappedBytes: 0, readBytes: 400, notes: [] });
  expect(tensors[0]!.pointer % 256n).toBe(0n);
  disposeAll(tensors);
});

test('by default what is in memory is mapped, but not for a framework', async () => {
  const byDefault = await streamed(path, { mmap: undefined });
  expect(byDefault.report).toMatchObject({ mappedBytes: BYTES, readBytes: 0, notes: [] });
  const framework = { adopt: (tensor: DeviceTensor) => tensor };
  const adopted = await streamed(path, { mmap: undefined, framework } as LoaderOptions);
  expect(adopted.report).toMatchObject({ mappedBytes: 0, readBytes: BYTES, notes: [] });
  disposeAll([...byDefault.tensors, ...adopted.tensors]);
});

test('a limit of the rate holds for all bytes: nothing is mapped then', async () => {
  const { tensors, report } = await streamed(path, { mmap: 'auto', maxBytesPerSecond: 1e9 });
  expect(report).toMatchObject({ mappedBytes: 0, readBytes: BYTES });
  disposeAll(tensors);
});

test('tensors that do not lie at their size are copied, others of the file are not', async () => {
  const odd = [entry('odd', 'U8', [3]), entry('moved', 'F64', [50_000]), entry('even', 'U8', [400_001])];
  const mixed = join(folder, 'odd.safetensors');
  writeFileSync(mixed, encodeFile(odd));
  const { tensors, report } = await streamed(mixed);
  expect(report).toMatchObject({ mappedBytes: 400_004, readBytes: 400_000 });
  truncateSync(mixed, 0);
  expectBytes(tensors, odd);
  disposeAll(tensors);
});

test('what is converted is copied', async () => {
  const { tensors, report } = await streamed(path, { dtype: 'F16' });
  expect(report).toMatchObject({ mappedBytes: 333_333, bytes: BYTES });
  expect(tensors.map(({ dtype }) => dtype)).toEqual(['F16', 'F16', 'F16', 'U8']);
  disposeAll(tensors);
});

test.each<LoaderOptions>([{ staging: 'always' }, { odirect: true }, { dropCache: true }])(
  'where reads are asked for, %p, nothing is mapped',
  async (options) => {
    const { tensors, report } = await streamed(path, options);
    expect(report.mappedBytes).toBe(0);
    expect(report.notes).toEqual([expect.stringMatching('only what plain reads bring')]);
    expectBytes(tensors);
    disposeAll(tensors);
  },
);

test('whole files and single tensors are mapped, too', async () => {
  const loader = new SafeTensorsFileLoader({ mmap: true });
  await loader.addFilenames([path]);
  const buffer = await loader.copyFilesToDevice();
  expect(loader.report.mappedBytes).toBe(BYTES);
  await loader.close();
  const opened = await fastsafeOpen([path], { mmap: true });
  const tensors = [
    await buffer.getTensor('weight'),
    await buffer.getTensor('bytes'),
    await opened.getTensor('weight'),
    await opened.getTensor('bias'),
  ];
  await buffer.close();
  await opened.close();
  expect(nativeMetrics().hostBytes).toBe(0);
  truncateSync(path, 0);
  expectBytes(tensors);
  disposeAll(tensors);
});

test('a file that changed since its header was read is FILE_CHANGED', async () => {
  const opened = await fastsafeOpen([path], { mmap: true });
  await setTimeout(20); // times of files are as fine as the kernel's tick
  writeFileSync(path, Buffer.alloc(10), { flag: 'r+' });
  await expect(opened.getTensor('weight')).rejects.toMatchObject({ code: 'FILE_CHANGED', path });
  await opened.close();
});

test('a writer between two batches is FILE_CHANGED, or what is there goes on', async () => {
  const loader = new ParallelLoader({ files: path, mmap: true, maxBatchBytes: 400_000, queueSize: -1 });
  const tensors: DeviceTensor[] = [];
  const loading = (async () => {
    for await (const [, tensor] of loader.iterateWeights()) {
      tensors.push(tensor);
      if (tensors.length === 1) truncateSync(path, 0);
    }
  })();
  const error = await loading.catch((thrown) => thrown);
  if (error !== undefined) expect(error).toMatchObject({ code: 'FILE_CHANGED' });
  expectBytes(tensors);
  disposeAll(tensors);
  await loader.close();
});

test('typed arrays hold the mapping when the tensor is disposed', async () => {
  const { tensors } = await streamed(path);
  const weight = tensors[0]!.data as Float32Array;
  disposeAll(tensors);
  truncateSync(path, 0);
  const bytes = Buffer.from(weight.buffer, weight.byteOffset, weight.byteLength);
  expect(bytes.equals(ENTRIES[0]!.bytes)).toBe(true);
});
