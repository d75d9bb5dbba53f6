import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import {
  type CopierFactory,
  createCopierConstructor,
  type Destination,
  Device,
  type DeviceTensor,
  fastsafeOpen,
  type LoaderOptions,
  ParallelLoader,
  type ParallelOptions,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
} from 'fastsafetensors-node';
import type { Entry } from './model-files.js';

/** Name, dtype, shape and bytes of tensors, in the order in which they came. */
export type Read = Omit<Entry, never>[];

async function take(tensor: DeviceTensor): Promise<Entry> {
  const { name, dtype, shape, byteLength } = tensor;
  // Not by expect(), which takes longer than the loads.
  assert.equal(byteLength === 0 ? tensor.pointer : tensor.pointer % 256n, 0n);
  const bytes = await tensor.toHost();
  assert.equal(bytes.byteLength, byteLength);
  if (tensor.device.type === 'cpu') {
    const { data } = tensor;
    assert.equal(Buffer.compare(Buffer.from(data.buffer, data.byteOffset, data.byteLength), bytes), 0);
  }
  tensor.dispose();
  return { name, dtype, shape: [...shape], bytes };
}

export async function readParallel(options: ParallelOptions): Promise<Read> {
  const loader = new ParallelLoader(options);
  const read: Read = [];
  try {
    for await (const [name, tensor] of loader.iterateWeights()) {
      assert.equal(tensor.name, name);
      read.push(await take(tensor));
    }
    return read;
  } finally {
    await loader.close();
  }
}

/** Holds every tensor until the end, so that memory that is used twice shows. */
export async function readParallelKept(options: ParallelOptions): Promise<Read> {
  const loader = new ParallelLoader(options);
  const tensors: DeviceTensor[] = [];
  try {
    for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
    await loader.close(); // the tensors outlive it
    return await Promise.all(tensors.map(take));
  } finally {
    for (const tensor of tensors) tensor.dispose();
    await loader.close();
  }
}

export async function readFiles(files: readonly string[], options: LoaderOptions): Promise<Read> {
  const loader = new SafeTensorsFileLoader(options);
  try {
    await loader.addFilenames(files);
    const keys = loader.keys();
    const buffers = await loader.copyFilesToDevice();
    await loader.close();
    expect(buffers.keys()).toEqual(keys);
    const tensors = await Promise.all(keys.map((key) => buffers.getTensor(key)));
    await buffers.close();
    return await Promise.all(tensors.map(take));
  } finally {
    await loader.close();
  }
}

export async function readLazily(files: readonly string[], options: LoaderOptions): Promise<Read> {
  const opened = await fastsafeOpen(files, options);
  try {
    const read: Read = [];
    for (const key of opened.keys()) read.push(await take(await opened.getTensor(key)));
    return read;
  } finally {
    await opened.close();
  }
}

/** Through a copier without a loader, into memory of the test's own. */
export async function readByHand(path: string): Promise<Read> {
  const metadata = await SafeTensorsMetadata.fromFile(path);
  const device = Device.parse('cpu');
  const copier = createCopierConstructor('nogds', 'cpu', { maxThreads: 2 })(metadata, device);
  const memory = Buffer.alloc(metadata.sizeBytes, 0xee);
  const destination: Destination = {
    device,
    byteLength: memory.byteLength,
    pointer: 0n,
    write: async (offset, bytes) => {
      memory.set(bytes, offset);
    },
  };
  const ranges = [...metadata].map(({ dataOffsets: [begin, end] }) => ({
    fileOffset: metadata.dataStart + begin,
    length: end - begin,
    destOffset: begin,
  }));
  try {
    const { signal } = new AbortController();
    await copier.waitIo(copier.submitIo({ path, ranges, destination, signal }));
  } finally {
    await copier.close();
  }
  return [...metadata].map(({ name, dtype, shape, dataOffsets: [begin, end] }) => ({
    name,
    dtype,
    shape: [...shape],
    bytes: memory.subarray(begin, end),
  }));
}

/** A copier as a user writes one: reads with node:fs, writes through the destination, in small pieces. */
export const userCopier: CopierFactory = () => () => ({
  submitIo: async ({ path, ranges, destination, signal }) => {
    const file = await open(path);
    try {
      for (const { fileOffset, length, destOffset } of ranges) {
        for (let done = 0; done < length; ) {
          signal.throwIfAborted();
          const { buffer, bytesRead } = await file.read(Buffer.alloc(Math.min(1000, length - done)), {
            position: fileOffset + done,
          });
          if (bytesRead === 0) throw new Error(`${path} ended early`);
          await destination.write(destOffset + done, buffer.subarray(0, bytesRead));
          done += bytesRead;
        }
      }
    } finally {
      await file.close();
    }
  },
  waitIo: (pending) => pending as Promise<void>,
  close: async () => {},
});

/** Every loader on the same files; `check` sees what each read. Of the options, all loaders take all. */
export const LOADERS: Readonly<Record<string, (files: string[], options: LoaderOptions) => Promise<Read>>> = {
  'ParallelLoader, in order': (files, options) => readParallel({ ...options, files }),
  'ParallelLoader, queueSize -1': (files, options) =>
    readParallel({ ...options, files, queueSize: -1, maxBatchBytes: 1000 }),
  'ParallelLoader, queueSize 2, all kept': (files, options) =>
    readParallelKept({ ...options, files, queueSize: 2, maxBatchBytes: 3000 }),
  'ParallelLoader, as ready': (files, options) =>
    readParallel({ ...options, files, order: 'ready', maxBatchBytes: 5000 }),
  'ParallelLoader, as ready, all kept': (files, options) => readParallelKept({ ...options, files, order: 'ready' }),
  SafeTensorsFileLoader: readFiles,
  fastsafeOpen: readLazily,
};

export function sorted(read: Read): Read {
  return [...read].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

/** Same tensors with the same bytes, in any order. */
export function expectSame(read: Read, expected: readonly Entry[]): void {
  expect(read.length).toBe(expected.length);
  const wanted = sorted([...expected]);
  for (const [i, { name, dtype, shape, bytes }] of sorted(read).entries()) {
    const want = wanted[i]!;
    expect({ name, dtype, shape }).toEqual({ name: want.name, dtype: want.dtype, shape: want.shape });
    const same = Buffer.compare(bytes, want.bytes) === 0;
    if (!same) throw new Error(`tensor ${JSON.stringify(name)}: wrong bytes\n${hex(bytes)}\n${hex(want.bytes)}`);
  }
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.subarray(0, 64)).toString('hex');
}
