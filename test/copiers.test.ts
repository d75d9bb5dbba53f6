import { rm } from 'node:fs/promises';
import {
  type Copier,
  createCopierConstructor,
  type Destination,
  Device,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
} from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// Copiers of the user: what they may do, and what they cannot break.

const ENTRIES = [entry('w', 'F32', [2, 2]), entry('b', 'U8', [9]), entry('e', 'U8', [0])];

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

async function load(copier: string): Promise<Map<string, Uint8Array>> {
  const loader = new SafeTensorsFileLoader({ copier });
  try {
    await loader.addFilenames(path);
    const buffers = await loader.copyFilesToDevice();
    const read = new Map<string, Uint8Array>();
    for (const key of buffers.keys()) {
      const tensor = await buffers.getTensor(key);
      read.set(key, await tensor.toHost());
      tensor.dispose();
    }
    await buffers.close();
    return read;
  } finally {
    await loader.close();
  }
}

test('mockCopier serves the tensors that it was given, and the rest from the file', async () => {
  for (const tensors of [{ w: Float32Array.of(1, 2, 3, 4) }, new Map([['w', Float32Array.of(1, 2, 3, 4)]])]) {
    registerCopier('mock', mockCopier({ tensors }));
    const read = await load('mock');
    expect([...new Float32Array(read.get('w')!.slice().buffer)]).toEqual([1, 2, 3, 4]);
    expect(Buffer.compare(read.get('b')!, ENTRIES[1]!.bytes)).toBe(0);
    expect(read.get('e')!.length).toBe(0);
  }
});

test('mockCopier fails where it is told to, by name or number, and refuses tensors of another size', async () => {
  registerCopier('mock', mockCopier({ failAt: 'b' }));
  await expect(load('mock')).rejects.toMatchObject({ code: 'IO_ERROR', path, tensor: 'b' });
  registerCopier('mock', mockCopier({ failAt: 1 }));
  await expect(load('mock')).rejects.toMatchObject({ code: 'IO_ERROR', tensor: 'w' });
  registerCopier('mock', mockCopier({ failAt: 'absent' }));
  expect((await load('mock')).size).toBe(3);
  registerCopier('mock', mockCopier({ tensors: { w: new Uint8Array(3) } }));
  await expect(load('mock')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', tensor: 'w' });
});

/** A copier of which one method is given. */
function copier(methods: Partial<Copier>): string {
  registerCopier('custom', () => () => ({
    submitIo: () => 0,
    waitIo: async () => {},
    close: async () => {},
    ...methods,
  }));
  return 'custom';
}

test.each<[string, Partial<Copier>]>([
  [
    'submitIo throws',
    {
      submitIo: () => {
        throw new Error('mine');
      },
    },
  ],
  [
    'waitIo rejects',
    {
      waitIo: async () => {
        throw new Error('mine');
      },
    },
  ],
  [
    'waitIo throws',
    {
      waitIo: () => {
        throw new Error('mine');
      },
    },
  ],
])('%s: the load rejects with that very error', async (_, methods) => {
  await expect(load(copier(methods))).rejects.toThrow('mine');
});

test('what is thrown and no Error becomes IO_ERROR with it as the cause', async () => {
  await expect(load(copier({ waitIo: () => Promise.reject('a string') }))).rejects.toMatchObject({
    code: 'IO_ERROR',
    cause: 'a string',
  });
});

test('a destination checks what is written and cannot be used when its load has ended', async () => {
  let kept: Destination | undefined;
  const submitIo: Copier['submitIo'] = async ({ destination }) => {
    kept = destination;
    expect(destination.pointer % 256n).toBe(0n);
    const outside = [
      [-1, 1],
      [destination.byteLength, 1],
      [0, destination.byteLength + 1],
      [0.5, 1],
      [Number.NaN, 1],
      [2 ** 53, 0],
    ];
    for (const [offset, length] of outside as [number, number][]) {
      await expect(destination.write(offset, new Uint8Array(length))).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
      });
    }
    await expect(destination.write(0, 'text' as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await destination.write(destination.byteLength, new Uint8Array(0));
  };
  await load(copier({ submitIo, waitIo: (pending) => pending as Promise<void> }));
  await expect(kept!.write(0, Uint8Array.of(1))).rejects.toMatchObject({ code: 'CLOSED' });
});

test('a signal tells a copier that the load is given up; its memory stays until it lets go', async () => {
  let aborted: unknown;
  let written = false;
  const controller = new AbortController();
  const submitIo: Copier['submitIo'] = ({ destination, signal }) =>
    new Promise<void>((resolve) => {
      setTimeout(() => controller.abort(), 1); // the copier holds its first read
      signal.addEventListener('abort', async () => {
        aborted = signal.reason;
        await new Promise((later) => setTimeout(later, 30));
        await destination.write(0, Uint8Array.of(1, 2, 3)); // still there
        written = true;
        resolve();
      });
    });
  const loader = new ParallelLoader({
    files: path,
    copier: copier({ submitIo, waitIo: (pending) => pending as Promise<void> }),
    signal: controller.signal,
  });
  const next = loader.iterateWeights().next();
  await expect(next).rejects.toMatchObject({ name: 'AbortError' });
  await loader.close();
  expect(aborted).toBeDefined();
  expect(written).toBe(true);
});

test('a built-in copier driven by hand: CLOSED after close, the signal, and ranges outside', async () => {
  const metadata = await SafeTensorsMetadata.fromFile(path);
  const device = Device.parse('cpu');
  const made = createCopierConstructor('nogds', device)(metadata, device);
  const written: [number, number][] = [];
  const destination: Destination = {
    device,
    byteLength: 100,
    pointer: 0n,
    write: async (offset, bytes) => void written.push([offset, bytes.length]),
  };
  const request = (
    range: { fileOffset: number; length: number; destOffset: number },
    signal = new AbortController().signal,
  ) => made.waitIo(made.submitIo({ path, ranges: [range], destination, signal }));
  const good = { fileOffset: metadata.dataStart, length: 9, destOffset: 3 };
  await request(good);
  expect(written).toEqual([[3, 9]]);
  await expect(request({ ...good, fileOffset: metadata.sizeBytes })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  });
  const reason = new Error('enough');
  await expect(request(good, AbortSignal.abort(reason))).rejects.toBe(reason);
  await made.close();
  expect(() => made.submitIo({ path, ranges: [good], destination, signal: new AbortController().signal })).toThrow(
    expect.objectContaining({ code: 'CLOSED' }),
  );
});
