import {
  FastSafetensorsError,
  fastsafeOpen,
  ParallelLoader,
  SafeTensorsFileLoader,
  SingleGroup,
} from 'fastsafetensors-node';

// Constructors check every option at once; a wrong one names itself, a misspelled one its nearest right name.

const WRONG: Record<string, unknown[]> = {
  device: ['gpu:', 'cuda:-1', 'cuda:x', '', 'CPU', 0, null],
  copier: [0, '', null],
  pg: [null, 1, {}, { rank: 1, size: 1 }, { rank: 0, size: 0 }, { rank: -1, size: 1 }, { rank: 0, size: 1.5 }],
  framework: [null, {}, { name: 'x' }, 'onnxruntime'],
  nogds: [1, 'true', null],
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
  staging: ['never', true],
  dropCache: [1],
  dtype: ['f32', 'FLOAT', 'toString', 1],
  filter: ['name', null],
  allowTrailingBytes: ['no', 0],
  signal: [null, {}, new AbortController()],
  timeoutMs: [0, -1, Number.NaN, '5s'],
  stallTimeoutMs: [0, -5, Number.NaN],
  maxBytesPerSecond: [0, -1, Number.NaN, '1 GB'],
  onProgress: [true, {}],
  progress: ['bar', 1],
};
const WRONG_PARALLEL: Record<string, unknown[]> = {
  ...WRONG,
  queueSize: [-2, 0.5, '1', null],
  maxBatchBytes: [0, -1, 1.5],
  deviceMemoryBudget: [0, -1, '0%', '101%', '50', 'half', null],
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
    staging: 'auto',
    dropCache: true,
    filter: () => true,
    allowTrailingBytes: true,
    signal: new AbortController().signal,
    timeoutMs: 1.5,
    stallTimeoutMs: 100,
    maxBytesPerSecond: 1e9,
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

test('what this version cannot do yet says so', () => {
  expect(refused(() => new SafeTensorsFileLoader({ dtype: 'U8' })).code).toBe('UNSUPPORTED_DTYPE');
  expect(refused(() => new ParallelLoader({ files: 'x', deviceMemoryBudget: '80%' })).message).toContain(
    'deviceMemoryBudget',
  );
  expect(refused(() => new SafeTensorsFileLoader({ pg: { rank: 1, size: 2 } })).message).toContain('pg');
});
