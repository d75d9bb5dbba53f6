import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type DeviceTensor,
  type Framework,
  fastsafeOpen,
  nativeMetrics,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { fakeReader, useFakeDevices } from 'fastsafetensors-node/testing';
import { native } from '../src/native/addon.js';
import { DEVICE, tensorBytes } from './support/device.js';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

const ENTRIES = Array.from({ length: 10 }, (_, i) => entry(`t${i}`, 'U8', [1000 + i]));
const PADDED = 1024;

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

test('the report is zero before the first load and tells what was loaded', async () => {
  registerCopier('fake', fakeReader({ chunk: 1024, inFlight: 3, msPerIo: 1 }));
  const other = await writeModel(folder, [entry('other', 'F32', [100])], 'other.safetensors');
  const loader = new ParallelLoader({ files: [path, other], copier: 'fake' });
  const zero = {
    copier: 'fake',
    device: DEVICE,
    devices: {},
    files: 0,
    tensors: 0,
    verifiedTensors: 0,
    bytes: 0,
    mappedBytes: 0,
    wantedBytes: 0,
    readBytes: 0,
    receivedBytes: 0,
    seconds: 0,
    bytesPerSecond: 0,
    maxInFlight: 0,
    fallbacks: [],
    notes: [],
  };
  expect(loader.report).toEqual(zero);
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  const { report } = loader;
  expect(report).toMatchObject({
    copier: 'fake',
    device: DEVICE,
    devices: {},
    files: 2,
    tensors: 11,
    bytes: 10045 + 400,
    mappedBytes: 0,
    readBytes: 10045 + 400,
    fallbacks: [],
    notes: [],
  });
  expect(report.seconds).toBeGreaterThan(0);
  expect(report.bytesPerSecond).toBeCloseTo(report.bytes / report.seconds);
  expect(report.maxInFlight).toBe(3);
  report.fallbacks.push({} as never); // a copy
  expect(loader.report.fallbacks).toEqual([]);
  await loader.close();
  expect(loader.report.tensors).toBe(11);
  expect(new SafeTensorsFileLoader().report).toEqual({ ...zero, copier: 'auto' });
});

test.each([
  [-1, 1],
  [0, 2],
  [2, 4],
])('queueSize %i holds at most %i batches of memory', async (queueSize, batches) => {
  const loader = new ParallelLoader({ files: path, queueSize, maxBatchBytes: 2 * PADDED });
  let most = 0;
  let seen = 0;
  for await (const [, tensor] of loader.iterateWeights()) {
    // Give what may be loaded ahead the time to be: its memory is what counts.
    await new Promise((resolve) => setTimeout(resolve, 5));
    most = Math.max(most, tensorBytes());
    tensor.dispose();
    ++seen;
  }
  expect(seen).toBe(10);
  expect(most).toBeLessThanOrEqual(batches * 2 * PADDED);
  expect(most).toBeGreaterThan((batches - 1) * 2 * PADDED);
  await loader.close();
});

test('a tensor larger than maxBatchBytes is a batch of its own', async () => {
  const loader = new ParallelLoader({ files: path, maxBatchBytes: 1 });
  const names: string[] = [];
  for await (const [name, tensor] of loader.iterateWeights()) {
    names.push(name);
    tensor.dispose();
  }
  expect(names).toEqual(ENTRIES.map(({ name }) => name));
  await loader.close();
});

test('order ready yields what has arrived first', async () => {
  registerCopier('out of order', fakeReader({ chunk: 1024, inFlight: 5, reorder: true, msPerIo: 1 }));
  const loader = new ParallelLoader({ files: path, copier: 'out of order', order: 'ready' });
  const names: string[] = [];
  for await (const [name, tensor] of loader.iterateWeights()) {
    names.push(name);
    tensor.dispose();
  }
  expect([...names].sort()).toEqual(ENTRIES.map(({ name }) => name).sort());
  expect(names).not.toEqual(ENTRIES.map(({ name }) => name));
  await loader.close();
});

test('the first tensor is yielded before the last has been read', async () => {
  registerCopier('slow', fakeReader({ chunk: 1024, inFlight: 1, msPerIo: 20 }));
  const loader = new ParallelLoader({ files: path, copier: 'slow' });
  const iterator = loader.iterateWeights();
  const { value } = await iterator.next();
  expect(loader.report.files).toBe(1);
  expect(nativeMetrics().inFlight).toBeGreaterThan(0);
  (value as [string, DeviceTensor])[1].dispose();
  await iterator.return();
  await loader.close();
});

test('filter decides by name and frame; what it throws comes out', async () => {
  const seen: string[] = [];
  const filter = (name: string, frame: { dtype: string; shape: readonly number[]; byteLength: number }) => {
    seen.push(`${name} ${frame.dtype} ${frame.shape} ${frame.byteLength}`);
    return frame.byteLength % 2 === 1;
  };
  const loader = new ParallelLoader({ files: path, filter });
  const names: string[] = [];
  for await (const [name, tensor] of loader.iterateWeights()) {
    names.push(name);
    expect(Buffer.compare(await tensor.toHost(), ENTRIES[Number(name.slice(1))]!.bytes)).toBe(0);
    tensor.dispose();
  }
  expect(names).toEqual(['t1', 't3', 't5', 't7', 't9']);
  expect(seen).toEqual(ENTRIES.map(({ name, bytes }) => `${name} U8 ${bytes.length} ${bytes.length}`));
  await loader.close();

  const opened = await fastsafeOpen(path, { filter: (name) => name === 't4' });
  expect(opened.keys()).toEqual(['t4']);
  await expect(opened.getTensor('t5')).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
  await opened.close();

  const nothing = new ParallelLoader({ files: path, filter: () => false });
  for await (const _ of nothing.iterateWeights()) throw new Error('nothing was wanted');
  await nothing.close();

  const throwing = () => {
    throw new Error('from the filter');
  };
  await expect(new ParallelLoader({ files: path, filter: throwing }).iterateWeights().next()).rejects.toThrow(
    'from the filter',
  );
});

test.each<[string, () => unknown]>([
  ['resolves', async () => false],
  ['rejects', () => Promise.reject(new Error('of an async filter'))],
])('a filter that %s is refused: a promise is no answer', async (_, filter) => {
  const refused = { code: 'INVALID_ARGUMENT', tensor: 't0', message: expect.stringContaining('async') };
  const options = { filter: filter as () => boolean };
  await expect(new ParallelLoader({ files: path, ...options }).iterateWeights().next()).rejects.toMatchObject(refused);
  const loader = new SafeTensorsFileLoader(options);
  await expect(loader.addFilenames(path)).rejects.toMatchObject(refused);
  await loader.close();
  await expect(fastsafeOpen(path, options)).rejects.toMatchObject(refused);
});

test('a borrowed tensor is given back when the next one is asked for, at the end and at a break', async () => {
  for (const order of ['file', 'ready'] as const) {
    const loader = new ParallelLoader({ files: path, borrow: true, order });
    const all: DeviceTensor[] = [];
    for await (const [, tensor] of loader.iterateWeights()) {
      expect(all.every((before) => before.disposed)).toBe(true);
      expect(tensor.disposed).toBe(false);
      expect(Buffer.compare(await tensor.toHost(), ENTRIES[Number(tensor.name.slice(1))]!.bytes)).toBe(0);
      all.push(tensor);
      if (all.length === 7) break;
    }
    expect(all.every((before) => before.disposed)).toBe(true);
    await loader.close();
  }
});

test('a framework makes what is yielded; what it throws ends the iteration', async () => {
  const framework: Framework<{ bytes: number }> = {
    name: 'sizes',
    adopt: async (tensor) => {
      const bytes = tensor.byteLength;
      if (bytes === 1005) throw new Error('no such size');
      tensor.dispose();
      return { bytes };
    },
  };
  const loader = new ParallelLoader({ files: path, framework });
  const sizes: number[] = [];
  const iterate = async (): Promise<void> => {
    for await (const [, size] of loader.iterateWeights()) sizes.push(size.bytes);
  };
  await expect(iterate()).rejects.toThrow('no such size');
  expect(sizes).toEqual([1000, 1001, 1002, 1003, 1004]);
  await loader.close();
});

test('after close() everything is CLOSED, also an iteration that had tensors ready', async () => {
  const loader = new ParallelLoader({ files: path });
  const iterator = loader.iterateWeights();
  const { value } = await iterator.next();
  (value as [string, DeviceTensor])[1].dispose();
  await loader[Symbol.asyncDispose]();
  await expect(iterator.next()).rejects.toMatchObject({ code: 'CLOSED' });
  expect(await iterator.next()).toEqual({ done: true, value: undefined });
  await expect(loader.iterateWeights().next()).rejects.toMatchObject({ code: 'CLOSED' });

  const opened = await fastsafeOpen(path);
  await opened[Symbol.asyncDispose]();
  await opened.close();
  for (const use of [() => opened.keys(), () => opened.metadata()]) {
    expect(use).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  }
  await expect(opened.getTensor('t0')).rejects.toMatchObject({ code: 'CLOSED' });
  await expect(opened.getSlice('t0', 0)).rejects.toMatchObject({ code: 'CLOSED' });
});

test('after an abort nothing more is handed out, although it was ready', async () => {
  const controller = new AbortController();
  const loader = new ParallelLoader({ files: path, signal: controller.signal });
  const iterator = loader.iterateWeights();
  const { value } = await iterator.next();
  (value as [string, DeviceTensor])[1].dispose();
  const reason = { mine: true };
  controller.abort(reason);
  await expect(iterator.next()).rejects.toBe(reason);
  await loader.close();
});

test('fastsafeOpen tells metadata by file and reads one tensor at a time', async () => {
  const opened = await fastsafeOpen([path]);
  expect([...opened.metadata()]).toEqual([[path, new Map()]]);
  const tensor = await opened.getTensor('t3');
  expect(tensorBytes()).toBe(1003);
  expect(Object.keys(tensor)).toEqual(['name', 'dtype', 'shape', 'byteLength', 'device']); // nothing of ours
  tensor[Symbol.dispose]();
  expect(tensor.disposed).toBe(true);
  await opened.close();
});

test('what is no name is INVALID_ARGUMENT, and what is closed is named', async () => {
  const opened = await fastsafeOpen(path);
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(path);
  const buffer = await loader.copyFilesToDevice();
  for (const name of [undefined, null, 3] as never[]) {
    for (const ask of [
      async () => opened.getTensor(name),
      async () => opened.getSlice(name),
      async () => loader.getShape(name),
      async () => buffer.getShape(name),
      async () => buffer.getTensor(name),
      async () => buffer.getSharded(name, 0),
    ]) {
      await expect(ask()).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(/^name: expected the name/),
      });
    }
  }
  await opened.close();
  await buffer.close();
  await loader.close();
  for (const [use, name] of [
    [async () => opened.keys(), 'what fastsafeOpen opened is closed'],
    [async () => opened.getTensor('t1'), 'what fastsafeOpen opened is closed'],
    [async () => loader.keys(), 'the loader is closed'],
    [async () => buffer.keys(), 'the buffer is closed'],
  ] as const) {
    await expect(use()).rejects.toMatchObject({ code: 'CLOSED', message: name });
  }
});

test('a read past the page cache that is refused falls back, visibly', async () => {
  const warnings: string[] = [];
  const logger = { debug() {}, info() {}, warn: (message: string) => warnings.push(message) };
  // /proc takes no O_DIRECT, but has no weights either: where the folder's file system takes it there is nothing to
  // fall back from.
  const loader = new ParallelLoader({ files: path, odirect: true, logger });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  const { fallbacks } = loader.report;
  expect(warnings.length).toBe(fallbacks.length > 0 ? 1 : 0);
  for (const fallback of fallbacks)
    expect(fallback).toEqual({ path, from: 'direct', to: 'buffered', reason: expect.any(String) });
  if (warnings.length > 0) expect(warnings[0]).toContain(`${path} falls back from 'direct' to 'buffered': `);
  await loader.close();
});

test('debug lines go to the logger', async () => {
  const lines: string[] = [];
  const logger = { debug: (message: string) => lines.push(message), info() {}, warn() {} };
  const loader = new ParallelLoader({ files: path, debugLog: true, logger });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  await loader.close();
  const { copier } = loader.report;
  expect(lines.join('\n')).toContain(`10 tensors, 10045 bytes from 1 file to ${DEVICE} through ${copier}`);
  expect(join(folder, 'x')).toContain(folder);
});

test('data of a device tensor names toHost(); parts and wrong ranges of toHost', async () => {
  useFakeDevices({});
  const opened = await fastsafeOpen(path, { device: 'cuda:1' });
  const tensor = await opened.getTensor('t2');
  expect(() => tensor.data).toThrow(
    expect.objectContaining({ code: 'DEVICE_UNAVAILABLE', message: expect.stringContaining('toHost') }),
  );
  const all = Buffer.from(ENTRIES[2]!.bytes);
  expect(Buffer.compare(await tensor.toHost({ offset: 10, length: 7 }), all.subarray(10, 17))).toBe(0);
  expect(Buffer.compare(await tensor.toHost({ offset: 1000 }), all.subarray(1000))).toBe(0);
  expect((await tensor.toHost({ offset: 1002 })).length).toBe(0);
  for (const range of [
    { offset: 1003 },
    { offset: -1 },
    { length: 1003 },
    { offset: 1, length: 1002 },
    { offset: 0.5 },
    { length: Number.NaN },
  ]) {
    await expect(tensor.toHost(range)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  }
  tensor.dispose();
  await opened.close();
  useFakeDevices(null);
});

test('what an engine is to do is made on a worker, and a loader that is closed meanwhile leaves nothing', async () => {
  const begin = jest.spyOn(native(), 'startTransfer');
  try {
    const loader = new ParallelLoader({ files: path });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
    expect(begin.mock.calls.length).toBe(1);
    const closed = new ParallelLoader({ files: path });
    const closing = new Promise<void>((resolve) => {
      begin.mockImplementationOnce((...call) => {
        begin.mockRestore();
        const starting = native().startTransfer(...call);
        resolve(closed.close());
        return starting;
      });
    });
    await expect(closed.iterateWeights().next()).rejects.toMatchObject({ code: 'CLOSED' });
    await closing;
  } finally {
    begin.mockRestore();
  }
});
