import { chmod, mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type DeviceTensor,
  FastSafetensorsError,
  fastsafeOpen,
  nativeMetrics,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { fakeReader, mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import { OUT_OF_MEMORY, tensorBytes } from './support/device.js';
import { expectNothingHeld } from './support/metrics.js';
import { type Entry, encodeFile, entry, newFolder, writeModel } from './support/model-files.js';
import { LOADERS } from './support/read-back.js';

// What goes wrong in the middle of a load says what and where, gives everything back, and leaves the loader usable.

const ENTRIES = ['a', 'b', 'c', 'd', 'e', 'f'].map((name) => entry(name, 'F32', [1024]));
const HEADER = encodeFile(ENTRIES).length - 6 * 4096;
const read = { chunk: 4096, inFlight: 2 }; // a tensor or two a read

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
});
afterEach(async () => {
  useFakeDevices(null);
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

function failure(loading: Promise<unknown>): Promise<FastSafetensorsError> {
  return loading.then(
    () => {
      throw new Error('it was loaded');
    },
    (error) => {
      expect(error).toBeInstanceOf(FastSafetensorsError);
      return error;
    },
  );
}

/** A loader that has loaded everything correctly before and must be able to again. */
async function loadAll(loader: ParallelLoader, expected: readonly Entry[] = ENTRIES): Promise<void> {
  const tensors: DeviceTensor[] = [];
  try {
    for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
    for (const [i, tensor] of tensors.entries()) {
      if (Buffer.compare(await tensor.toHost(), expected[i]!.bytes) !== 0)
        throw new Error(`wrong bytes in ${tensor.name}`);
    }
    if (tensors.length !== expected.length) throw new Error(`${tensors.length} tensors`);
  } finally {
    for (const tensor of tensors) tensor.dispose();
  }
}

function expectPlace(error: FastSafetensorsError): void {
  expect(error.path).toBe(path);
  expect(error.offset).toBeGreaterThanOrEqual(0);
  expect(error.offset).toBeLessThan(HEADER + 6 * 4096);
  // The tensor at that offset; a read that begins in the header is the first tensor's.
  const index = Math.max(0, Math.floor((error.offset! - HEADER) / 4096));
  expect(error.tensor).toBe(ENTRIES[index]!.name);
  expect(error.message).toContain('model.safetensors');
}

describe.each([
  ['cpu', {}],
  ['cuda:0', {}],
  ['cpu', { alignment: 4096, fillsHost: 0 as const }],
])('on %s, reader %o', (device, more) => {
  beforeEach(() => useFakeDevices({ copyDelayUs: 100 }));

  test.each([1, 2, 3, 6])('read %i fails: IO_ERROR with its place, and the next load works', async (failAt) => {
    registerCopier('failing', fakeReader({ ...read, ...more, failAt }));
    const loader = new ParallelLoader({ files: path, copier: 'failing', device });
    const error = await failure(loadAll(loader));
    expect(error.code).toBe('IO_ERROR');
    expectPlace(error);
    await loadAll(loader);
    await loader.close();
  });

  test.each([1, 2, 5])('read %i is short: SHORT_READ with its place, and the next load works', async (shortAt) => {
    registerCopier('short', fakeReader({ ...read, ...more, shortAt, reorder: true }));
    const loader = new ParallelLoader({ files: path, copier: 'short', device, order: 'ready' });
    const error = await failure(loadAll(loader));
    expect(error.code).toBe('SHORT_READ');
    expectPlace(error);
    await loader.close();
  });
});

test('a read longer than stallTimeoutMs is STALLED with its place; its memory goes when it comes back', async () => {
  registerCopier('late', fakeReader({ ...read, msPerIo: 400 }));
  const loader = new ParallelLoader({ files: path, copier: 'late', stallTimeoutMs: 50 });
  const error = await failure(loadAll(loader));
  expect(error.code).toBe('STALLED');
  expectPlace(error);
  expect(nativeMetrics()).toMatchObject({ openFiles: 1 });
  expect(tensorBytes()).toBeGreaterThan(0); // under I/O: not freed
  await expectNothingHeld({ stagingBytes: nativeMetrics().stagingBytes }); // the loader keeps its slots
  await loader.close();
});

test('timeoutMs ends a load with TIMEOUT', async () => {
  registerCopier('late', fakeReader({ ...read, msPerIo: 100 }));
  registerCopier('late mock', mockCopier({ delayMs: 200 }));
  for (const copier of ['late', 'late mock']) {
    const loader = new ParallelLoader({ files: path, copier, timeoutMs: 40 });
    expect((await failure(loadAll(loader))).code).toBe('TIMEOUT');
    await loader.close();
    const opened = await fastsafeOpen(path, { copier, timeoutMs: 40 });
    expect((await failure(opened.getTensor('c'))).code).toBe('TIMEOUT');
    await opened.close();
  }
});

test.each([1, 3])('copy %i to the device fails: CUDA_ERROR with its place', async (failCopy) => {
  useFakeDevices({ copyDelayUs: 100, failCopy });
  registerCopier('plain', fakeReader(read));
  for (const load of Object.values(LOADERS)) {
    if (load === LOADERS.fastsafeOpen && failCopy > 1) continue; // one copy a tensor: it comes further
    const error = await failure(load([path], { copier: 'plain', device: 'cuda:0' }));
    expect(error.code).toBe('CUDA_ERROR');
    expectPlace(error);
  }
});

test('a device that is full is OUT_OF_DEVICE_MEMORY; what fits can still be loaded', async () => {
  useFakeDevices({ memoryLimit: 10000 });
  const loader = new SafeTensorsFileLoader({ device: 'cuda:0' });
  await loader.addFilenames(path);
  const error = await failure(loader.copyFilesToDevice());
  expect(error.code).toBe('OUT_OF_DEVICE_MEMORY');
  expect(error.message).toMatch(/24576.*10000/);
  await loader.close();

  const parallel = new ParallelLoader({ files: path, device: 'cuda:0', maxBatchBytes: 4096, queueSize: -1 });
  for await (const [, tensor] of parallel.iterateWeights()) tensor.dispose();
  // Kept tensors fill the device in the middle of the load.
  const kept: DeviceTensor[] = [];
  const keeping = async (): Promise<void> => {
    for await (const [, tensor] of parallel.iterateWeights()) kept.push(tensor);
  };
  expect((await failure(keeping())).code).toBe('OUT_OF_DEVICE_MEMORY');
  expect(kept.length).toBe(2);
  expect(Buffer.compare(await kept[1]!.toHost(), ENTRIES[1]!.bytes)).toBe(0);
  for (const tensor of kept) tensor.dispose();
  await parallel.close();
});

describe('a sparse file of 1 TiB is out of memory before anything is allocated', () => {
  const GIB = 2 ** 30;
  async function sparse(tensors: number): Promise<string> {
    const each = (1024 * GIB) / tensors;
    const entries = Array.from(
      { length: tensors },
      (_, i) => `"t${i}":{"dtype":"U8","shape":[${each}],"data_offsets":[${i * each},${(i + 1) * each}]}`,
    );
    const header = Buffer.from(`{${entries.join(',')}}`);
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    const sparsePath = join(folder, 'sparse.safetensors');
    const file = await open(sparsePath, 'w');
    await file.write(Buffer.concat([length, header]));
    await file.truncate(8 + header.length + 1024 * GIB);
    await file.close();
    return sparsePath;
  }

  test('one tensor, every loader and copier', async () => {
    const file = await sparse(1);
    registerCopier('mock', mockCopier());
    for (const copier of ['nogds', 'mock']) {
      for (const load of Object.values(LOADERS)) {
        const error = await failure(load([file], { copier }));
        expect(error.code).toBe(OUT_OF_MEMORY);
        expect(error.message).toMatch(/1099511627776/);
      }
    }
  });

  test('many tensors, loaded whole', async () => {
    const file = await sparse(8192);
    registerCopier('untouched', () => () => ({ submitIo: () => 0, waitIo: async () => {}, close: async () => {} }));
    for (const copier of ['nogds', 'untouched']) {
      const error = await failure(LOADERS.SafeTensorsFileLoader!([file], { copier }));
      expect(error.code).toBe(OUT_OF_MEMORY);
      expect(tensorBytes()).toBe(0);
    }
  });
});

test('a missing file, a folder in place of a file and an unreadable one are IO_ERROR with their path', async () => {
  const missing = join(folder, 'missing.safetensors');
  const inner = join(folder, 'folder.safetensors');
  await mkdir(inner);
  for (const file of [missing, inner]) {
    for (const load of Object.values(LOADERS)) {
      expect(await failure(load([path, file], {}))).toMatchObject({ code: 'IO_ERROR', path: file });
    }
  }
  expect(await failure(fastsafeOpen(missing))).toMatchObject({ code: 'IO_ERROR', path: missing });
  if (process.getuid?.() !== 0) {
    await chmod(path, 0o200);
    expect(await failure(fastsafeOpen(path))).toMatchObject({ code: 'IO_ERROR', path });
  }
  expect(await failure(fastsafeOpen(inner))).toMatchObject({ code: 'NO_FILES', path: inner });
  expect(await failure(fastsafeOpen('/dev/zero'))).toMatchObject({ code: 'IO_ERROR', path: '/dev/zero' });
});
