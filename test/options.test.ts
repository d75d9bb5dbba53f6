import { rm } from 'node:fs/promises';
import {
  AutoLoader,
  copierAvailability,
  createCopierConstructor,
  FastSafetensorsError,
  fastsafeOpen,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  SingleGroup,
} from 'fastsafetensors-node';
import { newFolder, someEntries, writeModel } from './support/model-files.js';

// Constructors check every option at once; a wrong one names itself, a misspelled one its nearest right name.

const WRONG: Record<string, unknown[]> = {
  device: ['gpu:', 'cuda:-1', 'cuda:x', '', 'cpu:1', 0, null],
  copier: [0, '', null],
  pg: [
    1,
    {},
    { rank: 1, size: 1 },
    { rank: 0, size: 0 },
    { rank: -1, size: 1 },
    { rank: 0, size: 1.5 },
    { rank: 2, size: 2 },
    { rank: 0, size: 2, localRank: -1 },
  ],
  framework: [null, {}, { name: 'x' }, 'onnxruntime'],
  nogds: [1, 'true', null],
  copierOptions: [1, 'bucket', null, ['bucket']],
  setNuma: [0],
  debugLog: ['yes'],
  logger: [null, {}, { debug() {}, info() {} }],
  mountPoint: [1, 'a\0b'],
  entries: [0, -1, 1.5, '64'],
  ioDepth: ['1', 0.5],
  bufferSize: [0, 100, Number.NaN],
  fallback: ['gds', true],
  bounceBufferSize: [0, 4095, 2 ** 31, '16 MiB'],
  maxThreads: [0, -1, 1.5, Number.POSITIVE_INFINITY],
  odirect: ['yes', 1, null],
  mmap: ['yes', 1, null],
  staging: ['never', true],
  dropCache: [1],
  dtype: ['f32', 'FLOAT', 'toString', 1],
  dtypePolicy: ['lenient', true, null],
  filter: ['name', null],
  allowTrailingBytes: ['no', 0],
  signal: [null, {}, new AbortController(), { aborted: false }, { aborted: false, throwIfAborted() {} }],
  timeoutMs: [0, -1, Number.NaN, '5s'],
  stallTimeoutMs: [0, -5, Number.NaN],
  maxBytesPerSecond: [0, -1, Number.NaN, '1 GB'],
  onProgress: [true, {}],
  progress: ['bar', 1],
  deviceMemoryBudget: [0, -1, '0%', '101%', '50', 'half', null, [], { cpu: 0 }],
  hostMemoryBudget: [0, -1, '0%', '101%', '50', 'half', null, {}],
};
const WRONG_PARALLEL: Record<string, unknown[]> = {
  ...WRONG,
  queueSize: [-2, 0.5, '1', null],
  maxBatchBytes: [0, -1, 1.5],
  order: ['any', null],
  borrow: [1, 'yes'],
};

function refused(make: () => unknown): FastSafetensorsError & TypeError {
  try {
    make();
  } catch (error) {
    expect(error).toBeInstanceOf(FastSafetensorsError);
    return error as FastSafetensorsError & TypeError;
  }
  throw new Error('it was accepted');
}

test.each(Object.entries(WRONG_PARALLEL))('%s: wrong values are INVALID_ARGUMENT', async (name, values) => {
  for (const value of values) {
    const makes = [() => new ParallelLoader({ files: 'x', [name]: value })];
    if (name in WRONG) makes.push(() => new SafeTensorsFileLoader({ [name]: value }) as never);
    for (const make of makes) {
      const error = refused(make);
      expect(error.code).toBe('INVALID_ARGUMENT');
      expect(error).toBeInstanceOf(TypeError);
      expect(error.message).toContain(name);
    }
    if (name in WRONG) {
      await expect(fastsafeOpen('x', { [name]: value })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
  }
});

test('a copier that is not registered is UNKNOWN_COPIER, listing those there are', () => {
  const error = refused(() => new SafeTensorsFileLoader({ copier: 'nvme' }));
  expect(error.code).toBe('UNKNOWN_COPIER');
  for (const name of ['3fs', 'gds', 'nogds', 'unified']) expect(error.message).toContain(name);
});

test.each([
  ['devise', 'device'],
  ['max_threads', 'maxThreads'],
  ['onprogress', 'onProgress'],
  ['timeoutMS', 'timeoutMs'],
  ['bufferSizes', 'bufferSize'],
  ['abortSignal', 'signal'],
])('the unknown option %s is refused', (name, nearest) => {
  for (const make of [
    () => new ParallelLoader({ files: 'x', [name]: undefined }),
    () => new SafeTensorsFileLoader({ [name]: 1 } as never),
  ]) {
    const error = refused(make);
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toContain(`"${name}"`);
    expect(error.message).toContain(`did you mean "${nearest}"?`);
  }
});

test('names of Object.prototype are unknown options, and own ones cannot reach it', () => {
  for (const name of ['constructor', 'toString', '__proto__']) {
    const options = Object.fromEntries([[name, 1]]);
    expect(refused(() => new SafeTensorsFileLoader(options)).message).toContain(name);
  }
});

test('options that are no object, and missing files, are refused', () => {
  for (const options of [null, 1, 'x', []]) {
    expect(refused(() => new SafeTensorsFileLoader(options as never)).code).toBe('INVALID_ARGUMENT');
    expect(refused(() => new ParallelLoader(options as never)).code).toBe('INVALID_ARGUMENT');
  }
  expect(refused(() => new ParallelLoader({} as never)).message).toContain('files');
  expect(refused(() => new ParallelLoader(undefined as never)).code).toBe('INVALID_ARGUMENT');
});

test('every option is accepted with a right value or undefined', async () => {
  const right = {
    device: 'cpu',
    copier: 'auto',
    pg: new SingleGroup(),
    nogds: true,
    setNuma: false,
    debugLog: false,
    logger: { debug() {}, info() {}, warn() {} },
    mountPoint: '/mnt',
    entries: 64,
    ioDepth: -4,
    bufferSize: 1 << 20,
    reader: { readChunked: () => 0 },
    fallback: false,
    bounceBufferSize: 4096,
    maxThreads: 1,
    odirect: 'auto',
    mmap: 'auto',
    staging: 'auto',
    dropCache: true,
    filter: () => true,
    allowTrailingBytes: true,
    signal: new AbortController().signal,
    timeoutMs: 1.5,
    stallTimeoutMs: 100,
    maxBytesPerSecond: 1e9,
    deviceMemoryBudget: { 'cuda:0': '80%' },
    hostMemoryBudget: '50%',
    onProgress: () => {},
    progress: false,
  } as const;
  await new SafeTensorsFileLoader(right).close();
  await new ParallelLoader({
    ...right,
    files: 'x',
    queueSize: -1,
    maxBatchBytes: 1,
    order: 'ready',
    borrow: true,
  }).close();
  const nothing = Object.fromEntries(Object.keys(right).map((name) => [name, undefined]));
  await new SafeTensorsFileLoader(nothing).close();
});

/** Options of which one says something else each time that it is read: right the first time. */
function changing(name: string, right: unknown, ...wrong: unknown[]): object {
  const values = [right, ...wrong];
  return Object.defineProperty({}, name, {
    enumerable: true,
    get: () => (values.length > 1 ? values.shift() : values[0]),
  });
}

test('options are read once: what was checked is what is used', async () => {
  const folder = await newFolder();
  const files = await writeModel(folder, someEntries());
  const cases: [string, unknown, unknown][] = [
    ['maxThreads', 1, 'many'],
    ['bounceBufferSize', 4096, {}],
    ['timeoutMs', 60_000, Symbol('soon')],
    ['device', 'cpu', 'tpu'],
    ['copier', 'nogds', 'nvme'],
    ['signal', undefined, { aborted: true }],
    ['dtype', undefined, 'nothing'],
  ];
  for (const [name, right, wrong] of cases) {
    const options = (): object => changing(name, right, wrong);
    const withFiles = (): never =>
      Object.defineProperty(options(), 'files', { enumerable: true, value: files }) as never;
    for (const make of [() => new ParallelLoader(withFiles()), () => new AutoLoader(withFiles())]) {
      const loader = make();
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
      await loader.close();
    }
    const opened = await fastsafeOpen(files, options());
    (await opened.getTensor(opened.keys()[0]!)).dispose();
    await opened.close();
    const loader = new SafeTensorsFileLoader(options());
    await loader.addFilenames(files);
    const copyOptions = ['signal', 'dtype'].includes(name) ? options() : {};
    await (await loader.copyFilesToDevice(copyOptions)).close();
    await loader.close();
  }
  await rm(folder, { recursive: true });
});

test('a copier’s options are checked as the loaders’; one of the user’s own may have others', () => {
  for (const options of [{ maxThreads: 0 }, { maxThread: 1 }, { staging: 'never' }, null, 'x']) {
    const error = refused(() => createCopierConstructor('nogds', 'cpu', options as never));
    expect(error.code).toBe('INVALID_ARGUMENT');
  }
  createCopierConstructor('nogds', 'cpu', { maxThreads: 1, files: 'x', queueSize: 1 });
  const seen: unknown[] = [];
  registerCopier('of one’s own', (_, options) => {
    seen.push({ ...options });
    return () => ({ submitIo() {}, waitIo: async () => {}, close: async () => {} });
  });
  createCopierConstructor('of one’s own', 'cpu', { bucket: 'b', maxThreads: 2 });
  expect(seen).toEqual([{ bucket: 'b', maxThreads: 2 }]);
  for (const device of [null, {}, Symbol('gpu')])
    expect(refused(() => createCopierConstructor('nogds', device as never)).code).toBe('INVALID_ARGUMENT');
});

test('what cannot be made a string is refused with a code all the same', async () => {
  const odd = [Symbol('w'), Object.create(null), () => {}] as never[];
  const folder = await newFolder();
  const files = await writeModel(folder, someEntries());
  const opened = await fastsafeOpen(files);
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(files);
  const buffers = await loader.copyFilesToDevice();
  const name = buffers.keys()[0]!;
  const tensor = await buffers.getTensor(name);
  for (const value of odd) {
    expect(refused(() => createCopierConstructor(value, 'cpu')).code).toBe('UNKNOWN_COPIER');
    expect(refused(() => registerCopier(value)).code).toBe('INVALID_ARGUMENT');
    expect(refused(() => new SafeTensorsFileLoader({ copier: value })).code).toBe('INVALID_ARGUMENT');
    expect(refused(() => loader.getShape(value)).code).toBe('INVALID_ARGUMENT');
    const codes: [() => Promise<unknown>, string][] = [
      [() => copierAvailability(value), 'UNKNOWN_COPIER'],
      [() => opened.getTensor(value), 'INVALID_ARGUMENT'],
      [() => opened.getSlice(value), 'INVALID_ARGUMENT'],
      [() => buffers.getTensor(value), 'INVALID_ARGUMENT'],
      [() => buffers.getSharded(name, value), 'INVALID_ARGUMENT'],
      [() => buffers.pushTensor(name, value), 'INVALID_ARGUMENT'],
      [() => buffers.getMultiCols([value], 0), 'INVALID_ARGUMENT'],
      [() => tensor.toHost({ offset: value }), 'INVALID_ARGUMENT'],
      [() => tensor.toHost({ length: value }), 'INVALID_ARGUMENT'],
    ];
    for (const [call, code] of codes) await expect(call()).rejects.toMatchObject({ code });
  }
  await expect(opened.getSlice(name, odd[0] as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  tensor.dispose();
  await buffers.close();
  await loader.close();
  await opened.close();
  await rm(folder, { recursive: true });
});

test('what this version cannot do yet says so', () => {
  expect(refused(() => new SafeTensorsFileLoader({ dtype: 'U8' as never })).code).toBe('UNSUPPORTED_DTYPE');
});
