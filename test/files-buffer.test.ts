import { createHook } from 'node:async_hooks';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type DeviceTensor,
  FilesBufferOnDevice,
  type Framework,
  fastsafeOpen,
  nativeMetrics,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { native } from '../src/native/addon.js';
import { expectStaging, tensorBytes } from './support/device.js';
import { expectNothingHeld } from './support/metrics.js';
import { encodeFile, entry, newFolder, writeModel } from './support/model-files.js';

// What a buffer of loaded files answers on one rank.

const A = [
  entry('wide', 'F32', [2, 3]),
  entry('wider', 'F32', [2, 5]),
  entry('scalar', 'I64', []),
  entry('none', 'F32', [2, 0]),
];
const B = [
  entry('tall', 'F32', [4, 3]),
  entry('half', 'F16', [2, 3]),
  entry('cube', 'U16', [2, 3, 4]),
  entry('cube2', 'U16', [2, 7, 4]),
  entry('small', 'F4', [2, 2]),
  entry('odd', 'F4', [2, 3]),
  entry('six', 'F6_E2M3', [2, 4]),
];
const ALL = [...A, ...B];
const bytesOf = (name: string) => Buffer.from(ALL.find((each) => each.name === name)!.bytes);

let folder: string;
let paths: string[];
let loader: SafeTensorsFileLoader;
let buffers: FilesBufferOnDevice;

describe.each(['cpu', 'cuda:0'])('on %s', (device) => {
  beforeEach(async () => {
    useFakeDevices({ copyDelayUs: 100 });
    folder = await newFolder();
    paths = [await writeModel(folder, A, 'a.safetensors'), await writeModel(folder, B, 'b.safetensors')];
    loader = new SafeTensorsFileLoader({ device });
    await loader.addFilenames(paths);
    buffers = await loader.copyFilesToDevice();
  });
  afterEach(async () => {
    await buffers.close();
    await loader.close();
    await rm(folder, { recursive: true });
    await expectNothingHeld();
    useFakeDevices(null);
  });

  test('a tensor that is there costs one promise, and a turn of the event loop now and then', async () => {
    let promises = 0;
    const counting = createHook({
      init(_, type) {
        if (type === 'PROMISE') ++promises;
      },
    }).enable();
    for (let i = 0; i < 500; ++i) (await buffers.getTensor('wide')).dispose();
    counting.disable();
    expect(promises).toBeLessThan(500 * 2.5); // `await` makes another one while a hook looks on
  });

  async function expectTensor(tensor: DeviceTensor | null, shape: number[], bytes: Uint8Array): Promise<void> {
    expect(tensor!.shape).toEqual(shape);
    expect(tensor!.device.toString()).toBe(device);
    if (bytes.length > 0) expect(tensor!.pointer % 256n).toBe(0n);
    expect(Buffer.from(await tensor!.toHost()).toString('hex')).toBe(Buffer.from(bytes).toString('hex'));
    tensor!.dispose();
  }

  test('keys, shapes and files', () => {
    expect(buffers).toBeInstanceOf(FilesBufferOnDevice);
    expect([...buffers.keys()].sort()).toEqual(ALL.map(({ name }) => name).sort());
    for (const { name, shape } of ALL) {
      expect(buffers.getShape(name)).toEqual(shape);
      expect(loader.getShape(name)).toEqual(shape);
    }
    expect(buffers.getFilename('wide')).toBe(paths[0]);
    expect(buffers.getFilename('cube')).toBe(paths[1]);
    expect(buffers.getFilename('absent')).toBe('');
    expect(buffers.getFilename('constructor')).toBe('');
  });

  test('one tensor may be had several times, over the same memory', async () => {
    const [one, other] = await Promise.all([buffers.getTensor('wide'), buffers.getTensor('wide')]);
    expect(one.pointer).toBe(other.pointer);
    one.dispose();
    await expectTensor(other, [2, 3], bytesOf('wide'));
  });

  test('getSharded gives the one rank all of it, along every dimension and for -1', async () => {
    for (const dim of [-1, 0, 1, 2])
      await expectTensor(await buffers.getSharded('cube', dim), [2, 3, 4], bytesOf('cube'));
    await expectTensor(await buffers.getSharded('scalar', -1), [], bytesOf('scalar'));
    for (const [name, dim] of [
      ['cube', 3],
      ['cube', -2],
      ['cube', 0.5],
      ['scalar', 0],
      ['cube', '0'],
      ['cube', undefined],
    ] as [string, number][]) {
      await expect(buffers.getSharded(name, dim)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    await expect(buffers.getSharded('absent', 0)).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: 'absent' });
  });

  test('pushTensor gives rank 0 the tensor and refuses other ranks', async () => {
    await expectTensor(await buffers.pushTensor('tall', 0), [4, 3], bytesOf('tall'));
    for (const rank of [1, -1, 0.5, Number.NaN, '0', undefined]) {
      await expect(buffers.pushTensor('tall', rank as number)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    await expect(buffers.pushTensor('absent', 0)).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
  });

  test('getMultiCols puts tensors together along a dimension', async () => {
    const rows = (name: string, width: number) =>
      Array.from({ length: 2 }, (_, i) => bytesOf(name).subarray(i * width, (i + 1) * width));
    const [wide, wider, cube, cube2] = [rows('wide', 12), rows('wider', 20), rows('cube', 24), rows('cube2', 56)];
    const zip = (...parts: Buffer[][]) => Buffer.concat([0, 1].flatMap((row) => parts.map((part) => part[row]!)));
    await expectTensor(
      await buffers.getMultiCols(['wide', 'tall'], 0),
      [6, 3],
      Buffer.concat([bytesOf('wide'), bytesOf('tall')]),
    );
    await expectTensor(await buffers.getMultiCols(['wide', 'wider'], 1), [2, 8], zip(wide!, wider!));
    await expectTensor(
      await buffers.getMultiCols(['wider', 'none', 'wide', 'wide'], 1),
      [2, 11],
      zip(wider!, wide!, wide!),
    );
    await expectTensor(await buffers.getMultiCols(['cube2', 'cube'], 1), [2, 10, 4], zip(cube2!, cube!));
    await expectTensor(await buffers.getMultiCols(['cube', 'cube'], 2), [2, 3, 8], doubled(bytesOf('cube'), 8));
    await expectTensor(await buffers.getMultiCols(['none', 'none'], 1), [2, 0], Buffer.alloc(0));
    await expectTensor(await buffers.getMultiCols(['wide'], 0), [2, 3], bytesOf('wide'));
    const named = await buffers.getMultiCols(['tall', 'wide'], 0);
    expect(named.name).toBe('tall');
    named.dispose();
  });

  test('getMultiCols counts negative dimensions from the last', async () => {
    const last = await buffers.getMultiCols(['wide', 'wider'], 1);
    await expectTensor(await buffers.getMultiCols(['wide', 'wider'], -1), [2, 8], await last.toHost());
    last.dispose();
    const both = Buffer.concat([bytesOf('wide'), bytesOf('tall')]);
    await expectTensor(await buffers.getMultiCols(['wide', 'tall'], -2), [6, 3], both);
    const middle = await buffers.getMultiCols(['cube2', 'cube'], 1);
    await expectTensor(await buffers.getMultiCols(['cube2', 'cube'], -2), [2, 10, 4], await middle.toHost());
    middle.dispose();
  });

  test('getMultiCols takes elements smaller than a byte where rows are whole bytes', async () => {
    await expectTensor(await buffers.getMultiCols(['small', 'small'], 0), [4, 2], twice(bytesOf('small')));
    await expectTensor(await buffers.getMultiCols(['small', 'small'], -1), [2, 4], doubled(bytesOf('small'), 1));
    await expectTensor(await buffers.getMultiCols(['odd', 'odd'], 0), [4, 3], twice(bytesOf('odd')));
    await expectTensor(await buffers.getMultiCols(['six', 'six'], 1), [2, 8], doubled(bytesOf('six'), 3));
  });

  test('frame and metadata give what headers say', async () => {
    for (const { name, dtype, shape } of ALL) {
      for (const given of [buffers, loader]) expect(given.frame(name)).toMatchObject({ name, dtype, shape });
    }
    const texts = new Map(paths.map((path) => [path, new Map()]));
    expect(buffers.metadata()).toEqual(texts);
    expect(loader.metadata()).toEqual(texts);
    for (const given of [buffers, loader])
      expect(() => given.frame('absent')).toThrow(expect.objectContaining({ code: 'UNKNOWN_TENSOR' }));
    const path = join(folder, 'noted.safetensors');
    await writeFile(path, encodeFile([entry('noted', 'F32', [2])], { metadata: { format: 'pt', step: '7' } }));
    await loader.addFilenames(path);
    expect([...loader.metadata().get(path)!]).toEqual([
      ['format', 'pt'],
      ['step', '7'],
    ]);
    loader.reset(); // F4 becomes nothing else
    await loader.addFilenames(path);
    await using narrow = await loader.copyFilesToDevice({ dtype: 'BF16' });
    expect(narrow.frame('noted')).toMatchObject({ dtype: 'F32', byteLength: 8 });
    expect(narrow.metadata().get(path)!.get('format')).toBe('pt');
    await using opened = await fastsafeOpen(path);
    expect(opened.frame('noted')).toMatchObject({ dtype: 'F32', dataOffsets: [0, 8] });
    expect(() => opened.frame('absent')).toThrow(expect.objectContaining({ code: 'UNKNOWN_TENSOR' }));
    await narrow.close();
    expect(() => narrow.frame('noted')).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    expect(() => narrow.metadata()).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    loader.reset();
    expect(() => loader.metadata()).toThrow(expect.objectContaining({ code: 'NO_FILES' }));
  });

  test('getMultiCols of many short rows hands over a few numbers', async () => {
    const tall = [entry('left', 'U8', [50_000, 1]), entry('right', 'U8', [50_000, 3])];
    const path = await writeModel(folder, tall, 'tall.safetensors');
    const tallLoader = new SafeTensorsFileLoader({ device });
    await tallLoader.addFilenames(path);
    const tallBuffers = await tallLoader.copyFilesToDevice();
    const copies = jest.spyOn(native(), 'copyAllocation');
    try {
      const rows = Array.from({ length: 50_000 }, (_, row) => [
        tall[0]!.bytes.subarray(row, row + 1),
        tall[1]!.bytes.subarray(3 * row, 3 * row + 3),
      ]);
      await expectTensor(await tallBuffers.getMultiCols(['left', 'right'], 1), [50_000, 4], Buffer.concat(rows.flat()));
      expect(copies.mock.calls.map(([, , numbers]) => numbers.length)).toEqual([6, 6]);
    } finally {
      copies.mockRestore();
      await tallBuffers.close();
      await tallLoader.close();
    }
  });

  test('getMultiCols refuses what does not fit together', async () => {
    for (const [names, dim] of [
      [[], 0],
      ['wide', 0],
      [['wide', 'half'], 0],
      [['wide', 'wider'], 0],
      [['wide', 'cube'], 0],
      [['wide'], 2],
      [['wide'], -3],
      [['wide'], 0.5],
      [['scalar'], 0],
      [['scalar'], -1],
      [['odd', 'odd'], 1],
      [['odd', 'odd'], -1],
    ] as [string[], number][]) {
      await expect(buffers.getMultiCols(names, dim)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    await expect(buffers.getMultiCols(['wide', 'absent'], 0)).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
  });

  test('asDict gives each tensor as getSharded does', async () => {
    const tensors = await buffers.asDict({ wide: 0, tall: -1, scalar: -1 });
    expect([...tensors.keys()]).toEqual(['wide', 'tall', 'scalar']);
    for (const [name, tensor] of tensors) await expectTensor(tensor, [...tensor.shape], bytesOf(name));
    await expect(buffers.asDict({ wide: 0, absent: 0 })).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
    await expect(buffers.asDict({ wide: 5 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('after close() every use is CLOSED; getFilename, keys and shapes too', async () => {
    const kept = await buffers.getTensor('wide');
    await buffers.close();
    await buffers.close();
    await buffers[Symbol.asyncDispose]();
    for (const use of [() => buffers.keys(), () => buffers.getShape('wide'), () => buffers.getFilename('wide')]) {
      expect(use).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    }
    for (const use of [
      buffers.getTensor('wide'),
      buffers.getSharded('wide', 0),
      buffers.pushTensor('wide', 0),
      buffers.getMultiCols(['wide'], 0),
      buffers.asDict({ wide: 0 }),
    ]) {
      await expect(use).rejects.toMatchObject({ code: 'CLOSED' });
    }
    await expectTensor(kept, [2, 3], bytesOf('wide'));
  });
});

function doubled(bytes: Buffer, run: number): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += run) parts.push(bytes.subarray(at, at + run), bytes.subarray(at, at + run));
  return Buffer.concat(parts);
}

test('a framework adopts what every method returns; what it throws comes out', async () => {
  folder = await newFolder();
  const path = await writeModel(folder, A);
  const framework: Framework<string> = {
    name: 'names',
    adopt: (tensor) => {
      const text = `${tensor.name}:${tensor.shape}`;
      if (text.startsWith('scalar')) throw new Error('none of it');
      if (text.startsWith('wider')) return Promise.reject(new Error('nor of that'));
      tensor.dispose();
      return Promise.resolve(text);
    },
  };
  const typed = new SafeTensorsFileLoader({ framework });
  await typed.addFilenames(path);
  const adopted = await typed.copyFilesToDevice();
  const one: string = await adopted.getTensor('wide');
  expect(one).toBe('wide:2,3');
  expect(await adopted.getSharded('wide', 0)).toBe('wide:2,3');
  expect(await adopted.pushTensor('wide', 0)).toBe('wide:2,3');
  expect(await adopted.getMultiCols(['wide', 'wider'], 1)).toBe('wide:2,8');
  expect([...(await adopted.asDict({ wide: 0 })).values()]).toEqual(['wide:2,3']);
  await expect(adopted.getTensor('scalar')).rejects.toThrow('none of it');
  await expect(adopted.getTensor('wider')).rejects.toThrow('nor of that');
  await adopted.close();
  await typed.close();
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

test('a filter leaves the others unknown; nothing added is NO_FILES; reset() forgets', async () => {
  folder = await newFolder();
  const path = await writeModel(folder, A);
  const filtered = new SafeTensorsFileLoader({ filter: (name, frame) => name.startsWith('w') && frame.shape[1] === 5 });
  expect(() => filtered.keys()).toThrow(expect.objectContaining({ code: 'NO_FILES' }));
  await expect(filtered.copyFilesToDevice()).rejects.toMatchObject({ code: 'NO_FILES' });
  await filtered.addFilenames(path);
  expect(filtered.keys()).toEqual(['wider']);
  expect(filtered.estimate()).toMatchObject({ deviceBytes: 40, tensors: 1 });
  expect(() => filtered.getShape('wide')).toThrow(expect.objectContaining({ code: 'UNKNOWN_TENSOR' }));
  const some = await filtered.copyFilesToDevice();
  expect(some.keys()).toEqual(['wider']);
  expect(some.getFilename('wide')).toBe('');
  await expect(some.getTensor('wide')).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: 'wide' });
  await some.close();
  filtered.reset();
  expect(() => filtered.keys()).toThrow(expect.objectContaining({ code: 'NO_FILES' }));
  await filtered.addFilenames(join(folder, 'model.safetensors'));
  await filtered.close();
  for (const use of [
    () => filtered.keys(),
    () => filtered.getShape('wide'),
    () => filtered.estimate(),
    () => filtered.reset(),
  ]) {
    expect(use).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  }
  await expect(filtered.addFilenames(path)).rejects.toMatchObject({ code: 'CLOSED' });
  await expect(filtered.copyFilesToDevice()).rejects.toMatchObject({ code: 'CLOSED' });
  await rm(folder, { recursive: true });
});

test('estimate says what a load then takes', async () => {
  folder = await newFolder();
  const path = await writeModel(folder, ALL);
  const estimating = new SafeTensorsFileLoader({ staging: 'always', maxThreads: 1 });
  await estimating.addFilenames(path);
  const estimate = estimating.estimate();
  const { deviceBytes, tensors } = estimate;
  const loaded = await estimating.copyFilesToDevice();
  expectStaging(nativeMetrics().stagingBytes, estimate);
  expect(tensorBytes()).toBe(deviceBytes);
  expect(deviceBytes).toBeGreaterThanOrEqual(ALL.reduce((sum, { bytes }) => sum + bytes.length, 0));
  expect(tensors).toBe(ALL.length);
  await loaded.close();
  await estimating.close();
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

function twice(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, bytes]);
}
