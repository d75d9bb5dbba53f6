import { writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AutoLoader,
  type CopierFactory,
  type DeviceTensor,
  type DTypeName,
  fastsafeOpen,
  type LoaderOptions,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
} from 'fastsafetensors-node';
import { type MockCopierOptions, mockCopier } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { encodeFile, entry, newFolder, writeModel } from './support/model-files.js';

// A copier may know what a name means that is no file: a test of an application needs no fixture then.

afterEach(() => expectNothingHeld({ collect: true })); // typed arrays

const TENSORS = {
  weight: Float32Array.of(1.5, -2, 3, 4, 5, 6),
  table: { dtype: 'BF16' as const, shape: [2, 2], data: Uint16Array.of(1, 2, 3, 4) },
  empty: new Int8Array(0),
  scalar: { shape: [], data: BigInt64Array.of(-7n) },
  flags: { dtype: 'BOOL' as const, data: Uint8Array.of(1, 0, 1) },
};
const SHAPES: Record<string, [DTypeName, number[]]> = {
  weight: ['F32', [6]],
  table: ['BF16', [2, 2]],
  empty: ['I8', [0]],
  scalar: ['I64', []],
  flags: ['BOOL', [3]],
};

function check(tensors: readonly DeviceTensor[]): void {
  expect(Object.fromEntries(tensors.map(({ name, dtype, shape }) => [name, [dtype, [...shape]]]))).toEqual(SHAPES);
  for (const tensor of tensors) {
    const given = TENSORS[tensor.name as keyof typeof TENSORS];
    expect(tensor.data).toEqual(ArrayBuffer.isView(given) ? given : given.data);
    tensor.dispose();
  }
}

const mock = (options: MockCopierOptions = { tensors: TENSORS }): LoaderOptions => {
  registerCopier('mock', mockCopier(options));
  return { copier: 'mock' };
};

async function stream(
  files: string | string[],
  options: LoaderOptions,
  Loader = ParallelLoader,
): Promise<DeviceTensor[]> {
  const loader = new Loader({ files, ...options });
  const tensors: DeviceTensor[] = [];
  try {
    for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
  } finally {
    await loader.close();
  }
  return tensors;
}

test('every loader gives the tensors of a mock, for a name that is no file', async () => {
  const options = mock();
  for (const name of ['model', 'no/such/folder/model.safetensors', '/proc/self/cmdline/x'])
    check(await stream(name, options));
  check(await stream('model', { ...options, order: 'ready' } as never));
  check(await stream('model', options, AutoLoader));

  const loader = new SafeTensorsFileLoader(options);
  await loader.addFilenames({ 0: ['model'] });
  expect(loader.keys()).toEqual(Object.keys(SHAPES));
  const buffers = await loader.copyFilesToDevice();
  expect(buffers.getFilename('weight')).toBe('model');
  check(await Promise.all(Object.keys(SHAPES).map((name) => buffers.getTensor(name))));
  await buffers.close();
  await loader.close();

  const opened = await fastsafeOpen('model', options);
  check(await Promise.all(opened.keys().map((name) => opened.getTensor(name))));
  const slice = await opened.getSlice('weight', { start: 1, stop: 3 });
  expect(slice.data).toEqual(Float32Array.of(-2, 3));
  slice.dispose();
  await opened.close();
});

test('filters, failures and a Map work as with files', async () => {
  const filtered = await stream('model', { ...mock(), filter: (name) => name === 'table' });
  expect(filtered.map(({ name }) => name)).toEqual(['table']);
  filtered[0]!.dispose();
  await expect(stream('model', mock({ tensors: TENSORS, failAt: 'table' }))).rejects.toMatchObject({
    code: 'IO_ERROR',
    path: 'model',
    tensor: 'table',
  });
  check(await stream('model', mock({ tensors: new Map(Object.entries(TENSORS)) })));
});

test('a name that is a file means the file', async () => {
  const folder = await newFolder();
  const path = await writeModel(folder, [entry('weight', 'F32', [6]), entry('other', 'U8', [2])]);
  const tensors = await stream(path, mock());
  expect(tensors.map(({ name }) => name)).toEqual(['weight', 'other']);
  expect(tensors[0]!.data).toEqual(TENSORS.weight);
  for (const tensor of tensors) tensor.dispose();
  writeFileSync(join(folder, 'broken'), 'x');
  await expect(stream(join(folder, 'broken'), mock())).rejects.toMatchObject({ path: join(folder, 'broken') });
  await rm(folder, { recursive: true });
});

test.each<[string, MockCopierOptions]>([
  ['a mock without tensors', {}],
  ['a mock of no tensors', { tensors: {} }],
])('%s: a name that is no file stays an error', async (_, options) => {
  await expect(stream('model', mock(options))).rejects.toMatchObject({ code: 'IO_ERROR', path: 'model' });
});

test('two names of the same tensors are DUPLICATE_TENSOR', async () => {
  await expect(stream(['a', 'b'], mock())).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR' });
});

test.each([
  ['a view that does not say its dtype', { w: new DataView(new ArrayBuffer(4)) }, /has no dtype/],
  ['an unknown dtype', { w: { dtype: 'F33', data: new Uint8Array(4) } }, /has no dtype/],
  ['a shape of other length', { w: { shape: [3], data: new Float32Array(2) } }, /is F32 \[3\].*8 bytes/],
  ['a shape that is none', { w: { shape: 2, data: new Float32Array(2) } }, /is F32/],
  ['half an element', { w: { dtype: 'F32', data: new Uint8Array(6) } }, /is F32/],
])('%s is INVALID_ARGUMENT', async (_, tensors, message) => {
  await expect(stream('model', mock({ tensors: tensors as never }))).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    tensor: 'w',
    message: expect.stringMatching(message),
  });
});

describe('a factory of the user’s own', () => {
  const file = encodeFile([entry('a', 'F32', [5]), entry('b', 'U8', [3])]);
  const asked: string[] = [];
  const store = (metadata: CopierFactory['metadata']): LoaderOptions => {
    const factory: CopierFactory = () => () => ({
      async submitIo({ path, ranges, destination }) {
        expect(path).toBe('store://model');
        for (const { fileOffset, length, destOffset } of ranges)
          await destination.write(destOffset, file.subarray(fileOffset, fileOffset + length));
      },
      waitIo: (pending) => pending as Promise<void>,
      close: async () => {},
    });
    registerCopier('store', Object.assign(factory, { metadata }));
    return { copier: 'store' };
  };

  test('gives the header of a name, as bytes that it has, and copies ranges of that', async () => {
    const options = store(async (name) => {
      asked.push(name);
      return name === 'store://model' ? SafeTensorsMetadata.fromBuffer(file) : undefined;
    });
    const tensors = await stream('store://model', options);
    const bytes = await Promise.all(tensors.map((tensor) => tensor.toHost()));
    expect(Buffer.concat(bytes).equals(file.subarray(-23))).toBe(true);
    for (const tensor of tensors) tensor.dispose();
    expect(asked).toEqual(['store://model']);
    await expect(stream('other', options)).rejects.toMatchObject({ code: 'IO_ERROR', path: 'other' });
  });

  test('has its errors passed on', async () => {
    const options = store(() => {
      throw new Error('the store is closed');
    });
    await expect(stream('store://model', options)).rejects.toThrow('the store is closed');
  });

  test('that gives something else is INVALID_ARGUMENT', async () => {
    await expect(stream('store://model', store((() => ({})) as never))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('expected SafeTensorsMetadata'),
    });
  });
});
