import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type DTypeName,
  fastsafeOpen,
  type LoaderOptions,
  nativeMetrics,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { fakeReader, useFakeDevices } from 'fastsafetensors-node/testing';
import { CONVERTIBLE, canConvert, DTYPE_NAMES } from '../src/base/dtype.js';
import { engineConstructor } from '../src/copiers/engine-copier.js';
import { engineOptions } from '../src/copiers/nogds.js';
import { native } from '../src/native/addon.js';
import { converted } from './support/convert-reference.js';
import { expectStaging, ON_HOST } from './support/device.js';
import { expectNothingHeld } from './support/metrics.js';
import { BITS, type Entry, encodeFile, entry, newFolder } from './support/model-files.js';
import { expectSame, LOADERS, userCopier } from './support/read-back.js';

registerCopier('odd chunks', fakeReader({ chunk: 1001, inFlight: 3, reorder: true }));
registerCopier('tiny chunks', fakeReader({ chunk: 5, inFlight: 4 }));
registerCopier('blocks', fakeReader({ chunk: 1024, alignment: 512, fillsHost: 0, reorder: true }));
registerCopier('user', userCopier);

const HOW: Record<string, LoaderOptions> = {
  'where readers fill tensors': {},
  'through slots': { staging: 'always', bounceBufferSize: 4096, maxThreads: 2 },
  'past the page cache': { odirect: true, bounceBufferSize: 4096 },
  'onto a device': { device: 'cuda:0' },
  'onto a device, small slots': { device: 'cuda:1', bounceBufferSize: 4096, maxThreads: 1 },
  'onto a device, from the page cache': { device: 'cuda:0', staging: 'mapped', bounceBufferSize: 4096 },
  'in odd chunks': { copier: 'odd chunks' },
  'in odd chunks onto a device': { copier: 'odd chunks', device: 'cuda:0' },
  'in chunks smaller than an element': { copier: 'tiny chunks' },
  'in chunks smaller than an element, onto a device': { copier: 'tiny chunks', device: 'cuda:0' },
  'in blocks': { copier: 'blocks' },
  'in blocks onto a device': { copier: 'blocks', device: 'cuda:1' },
};

let folder: string;
beforeAll(() => useFakeDevices({ copyDelayUs: 50 }));
afterAll(() => useFakeDevices(null));
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

/** Tensors that become `dtype`, among others that stay as they are; bytes in front put elements at odd offsets. */
function mixture(dtype: DTypeName, prefix = '', rows = 7): Entry[] {
  const floats = DTYPE_NAMES.filter((from) => canConvert(from, dtype));
  return [
    entry(`${prefix}odd`, 'U8', [3]),
    ...floats.map((from, i) => entry(`${prefix}${from}`, from, [rows, 101 + i])),
    entry(`${prefix}same`, dtype, [55]),
    entry(`${prefix}integers`, 'I64', [33]),
    entry(`${prefix}flags`, 'BOOL', [5]),
    entry(`${prefix}pairs`, 'C64', [9]),
    entry(`${prefix}scalar`, floats[0]!, []),
    entry(`${prefix}empty`, floats[1]!, [0, 4]),
    ...floats.map((from) => entry(`${prefix}${from} again`, from, [1, 13])),
  ];
}

async function write(name: string, entries: Entry[], padding = 0): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, encodeFile(entries, { padding }));
  return path;
}

test('the table of conversions is that of the core', () => {
  const pairs = DTYPE_NAMES.flatMap((from) => DTYPE_NAMES.filter((to) => canConvert(from, to)).map((to) => [from, to]));
  expect(pairs).toEqual(native().tables().conversions);
  expect(CONVERTIBLE).toEqual(['F16', 'BF16', 'F32', 'F64', 'F8_E5M2', 'F8_E4M3', 'F8_E4M3FNUZ', 'F8_E5M2FNUZ']);
});

describe.each(Object.entries(HOW))('%s', (how, options) => {
  const rare = ['where readers fill tensors', 'in chunks smaller than an element, onto a device'].includes(how);
  const rows = how.startsWith('in chunks smaller') ? 1 : 7; // a thousand reads and more
  const dtypes = rare ? CONVERTIBLE : (['F16', 'BF16', 'F32', 'F8_E4M3'] as const);
  test.each(dtypes)('every loader converts to %s', async (dtype) => {
    const entries = [mixture(dtype, 'a ', rows), mixture(dtype, 'b ', rows)];
    const files = [await write('a.safetensors', entries[0]!, 1), await write('b.safetensors', entries[1]!, 6)];
    const expected = entries.flat().map((tensor) => converted(tensor, dtype));
    for (const load of Object.values(LOADERS)) expectSame(await load(files, { ...options, dtype }), expected);
  });
});

test.each(['cpu', 'cuda:0'])('slices are converted, %s', async (device) => {
  const tensor = entry('w', 'F64', [40, 33]);
  for (let i = 7; i < tensor.bytes.length; i += 8) tensor.bytes[i] = (tensor.bytes[i]! & 0x80) | 0x3f; // values near 1
  const file = await write('s.safetensors', [entry('odd', 'U8', [1]), tensor], 2);
  const whole = converted(tensor, 'F32');
  const floats = new Float32Array(whole.bytes.buffer, whole.bytes.byteOffset, 40 * 33);
  const opened = await fastsafeOpen(file, { dtype: 'F32', device });
  try {
    const slice = await opened.getSlice('w', { start: 3, step: 5 }, { start: -1, step: -2 });
    const expected: number[] = [];
    for (let row = 3; row < 40; row += 5)
      for (let column = 32; column >= 0; column -= 2) expected.push(floats[row * 33 + column]!);
    expect(slice).toMatchObject({ dtype: 'F32', shape: [8, 17], byteLength: 8 * 17 * 4 });
    const bytes = await slice.toHost();
    expect([...new Float32Array(bytes.buffer, bytes.byteOffset, 8 * 17)]).toEqual(expected);
    slice.dispose();
    const none = await opened.getSlice('w', { start: 40 });
    expect(none).toMatchObject({ dtype: 'F32', shape: [0, 33], byteLength: 0 });
  } finally {
    await opened.close();
  }
});

test('copyFilesToDevice converts with a dtype of its own, and estimates are of what is loaded', async () => {
  const entries = mixture('F16');
  const file = await write('m.safetensors', entries);
  const aligned = (list: Entry[]) => list.reduce((used, { bytes }) => Math.ceil(used / 256) * 256 + bytes.length, 0);
  for (const device of ['cpu', 'cuda:0']) {
    const loader = new SafeTensorsFileLoader({ dtype: 'F32', device });
    try {
      // F32 from everything that F16 can come from, but not from F32 itself.
      await loader.addFilenames(file);
      const estimate = loader.estimate();
      expect(estimate.deviceBytes).toBe(aligned(entries.map((tensor) => converted(tensor, 'F32'))));
      const half = await loader.copyFilesToDevice({ dtype: 'F16' });
      const single = await loader.copyFilesToDevice();
      const stagingBytes = nativeMetrics().stagingBytes;
      expectStaging(stagingBytes, estimate);
      expect(stagingBytes).toBeGreaterThan(0);
      for (const [buffer, dtype] of [
        [half, 'F16'],
        [single, 'F32'],
      ] as const) {
        const read = await Promise.all(
          buffer.keys().map(async (key) => {
            const tensor = await buffer.getTensor(key);
            const bytes = await tensor.toHost();
            return { name: key, dtype: tensor.dtype, shape: [...tensor.shape], bytes };
          }),
        );
        expectSame(
          read,
          entries.map((tensor) => converted(tensor, dtype)),
        );
        await buffer.close();
      }
    } finally {
      await loader.close();
    }
  }
});

test.each(['F16', 'BF16', 'F32'] as const)(
  'whatever a buffer hands out has the dtype in memory: tensors by name, in a dictionary, together (%s)',
  async (dtype) => {
    const from = dtype === 'F32' ? 'F16' : 'F32';
    const a = entry('a', from, [2, 8]);
    for (let i = BITS[from] / 8 - 1; i < a.bytes.length; i += BITS[from] / 8) a.bytes[i] = 0x3f; // values near 1
    const loader = new SafeTensorsFileLoader({ dtype });
    try {
      await loader.addFilenames(await write('m.safetensors', [entry('odd', 'U8', [1]), a]));
      const buffer = await loader.copyFilesToDevice();
      const expected = converted(a, dtype);
      const together = Buffer.concat([expected.bytes, expected.bytes]);
      expect(buffer.sourceOf('a')).toMatchObject({ dtype, byteLength: expected.bytes.length });
      const dictionary = await buffer.asDict({ a: 0 });
      for (const [tensor, bytes] of [
        [await buffer.getTensor('a'), expected.bytes],
        [await buffer.getSharded('a', 1), expected.bytes],
        [(await buffer.pushTensor('a', 0))!, expected.bytes],
        [dictionary.get('a')!, expected.bytes],
        [await buffer.getMultiCols(['a', 'a'], 0), together],
      ] as const) {
        expect(tensor).toMatchObject({ dtype, byteLength: bytes.length });
        expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
        if (ON_HOST) expect(tensor.data.constructor.name).toBe(dtype === 'F32' ? 'Float32Array' : 'Uint16Array');
        tensor.dispose();
      }
      await buffer.close();
    } finally {
      await loader.close();
    }
  },
);

test('a loader whose tensors need no conversion takes no staging for it on the host', async () => {
  const file = await write('p.safetensors', [entry('w', 'F16', [1000]), entry('i', 'I32', [10])]);
  const loader = new SafeTensorsFileLoader({ dtype: 'F16' });
  await loader.addFilenames(file);
  const estimate = loader.estimate();
  if (ON_HOST) expect(estimate.stagingBytes).toBe(0);
  const buffer = await loader.copyFilesToDevice();
  expectStaging(nativeMetrics().stagingBytes, estimate);
  await buffer.close();
  await loader.close();
});

test.each([
  ['F8_E8M0', 'F32'],
  ['F8_E8M0', 'F8_E4M3'],
  ['F6_E2M3', 'F32'],
  ['F4', 'BF16'],
  ['F6_E3M2', 'F64'],
] as const)('a tensor of %s cannot become %s: UNSUPPORTED_DTYPE before anything is allocated', async (from, dtype) => {
  const file = await write('u.safetensors', [entry('fine', 'F32', [4]), entry('the one', from, [4, 8])]);
  const error = { code: 'UNSUPPORTED_DTYPE', tensor: 'the one', path: file };
  for (const load of Object.values(LOADERS)) {
    const failure = await load([file], { dtype }).catch((e) => e);
    expect(failure).toMatchObject(error);
    expect(failure.message).toContain(`"the one" is ${from}, which cannot be converted to ${dtype}`);
  }
  const loader = new SafeTensorsFileLoader({ filter: (name) => name === 'fine' });
  await loader.addFilenames(file);
  await (await loader.copyFilesToDevice({ dtype })).close(); // what the filter leaves out is nobody's concern
  await loader.close();
});

test.each(['F8_E8M0', 'F6_E2M3', 'I8', 'F4'] as const)('nothing becomes %s: the constructor says so', async (name) => {
  const dtype = name as never;
  const error = expect.objectContaining({
    code: 'UNSUPPORTED_DTYPE',
    message: expect.stringContaining('F16, BF16, F32'),
  });
  expect(() => new SafeTensorsFileLoader({ dtype })).toThrow(error);
  expect(() => new ParallelLoader({ files: 'x', dtype })).toThrow(error);
  await expect(fastsafeOpen('x', { dtype })).rejects.toEqual(error);
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(await write('n.safetensors', [entry('w', 'F32', [4])]));
  await expect(loader.copyFilesToDevice({ dtype })).rejects.toEqual(error);
  await loader.close();
});

test('a copier of the user cannot convert, and loads what needs no conversion', async () => {
  const file = await write('c.safetensors', [entry('w', 'F32', [4]), entry('i', 'I8', [4])]);
  for (const load of Object.values(LOADERS)) {
    const failure = await load([file], { copier: 'user', dtype: 'F16' }).catch((e) => e);
    expect(failure).toMatchObject({ code: 'UNSUPPORTED_DTYPE', message: expect.stringContaining("copier: 'nogds'") });
  }
  const same = [entry('w', 'F32', [4]), entry('i', 'I8', [4])];
  const other = await write('d.safetensors', same);
  for (const load of Object.values(LOADERS)) expectSame(await load([other], { copier: 'user', dtype: 'F32' }), same);
});

test('a reader whose slots are device memory makes way for another, and the report says so', async () => {
  registerCopier('device slots', (_device, options) =>
    engineConstructor({
      reader: { kind: 'no such reader' },
      engine: engineOptions(options),
      conversionFallback: {
        copier: 'nogds',
        reason: 'its slots are device memory',
        spec: { reader: { kind: 'file' }, engine: engineOptions(options) },
      },
    }),
  );
  const entries = mixture('F16');
  const file = await write('g.safetensors', entries);
  const warnings: string[] = [];
  const logger = { debug: () => {}, info: () => {}, warn: (text: string) => warnings.push(text) };
  const loader = new SafeTensorsFileLoader({ copier: 'device slots', dtype: 'F16', device: 'cuda:0', logger });
  try {
    await loader.addFilenames(file);
    await (await loader.copyFilesToDevice()).close();
    expect(loader.report.fallbacks).toEqual([
      { path: file, from: 'device slots', to: 'nogds', reason: 'its slots are device memory' },
    ]);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain(" falls back from 'device slots' to 'nogds': ");
  } finally {
    await loader.close();
  }
});
