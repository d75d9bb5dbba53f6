import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  AutoLoader,
  createCopierConstructor,
  fastsafeOpen,
  loadConfig,
  ParallelLoader,
  ParallelThreeFSLoader,
  registerCopier,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  saveFile,
  ThreeFSLoader,
} from 'fastsafetensors-node';
import { createSession } from 'fastsafetensors-node/ort';
import { emulators, fakeReader, mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import { loadGraphModel, loadLayersModel, safetensorsHandler } from 'fastsafetensors-node/tfjs';
import * as ort from 'onnxruntime-node';
import { refused } from './support/refused.js';

// Every object of options there is: an option that nobody knows is a TypeError, and it names the nearest right one
// where one is near.

let folder: string;
let path: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'options-'));
  path = join(folder, 'm.safetensors');
  await saveFile([{ name: 'w', dtype: 'U8', shape: [8], data: Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7) }], path);
});
afterAll(() => rmSync(folder, { recursive: true }));

// biome-ignore lint/suspicious/noExplicitAny: what is wrong must not be checked by the compiler.
type Any = any;

async function opened<T>(use: (files: Any) => T | Promise<T>): Promise<T> {
  const files = await fastsafeOpen(path);
  try {
    return await use(files);
  } finally {
    await files.close();
  }
}

function ofTensor<T>(use: (tensor: Any) => T | Promise<T>): Promise<T> {
  return opened(async (files) => {
    const tensor = await files.getTensor('w');
    try {
      return await use(tensor);
    } finally {
      tensor.dispose();
    }
  });
}

async function loaded<T>(use: (loader: Any) => T | Promise<T>): Promise<T> {
  const loader = new SafeTensorsFileLoader();
  try {
    await loader.addFilenames(path);
    return await use(loader);
  } finally {
    await loader.close();
  }
}

const TF: Any = {};

const DOORS: [string, (options: Any) => unknown, wrong: string, right: string][] = [
  ['new SafeTensorsFileLoader', (o) => new SafeTensorsFileLoader(o), 'devise', 'device'],
  ['new ThreeFSLoader', (o) => new ThreeFSLoader(o), 'mountpont', 'mountPoint'],
  ['new ParallelLoader', (o) => new ParallelLoader({ files: 'x', ...o }), 'queue_size', 'queueSize'],
  ['new ParallelThreeFSLoader', (o) => new ParallelThreeFSLoader({ files: 'x', ...o }), 'bufferSizes', 'bufferSize'],
  ['new AutoLoader', (o) => new AutoLoader({ files: 'x', ...o }), 'thread', 'maxThreads'],
  ['fastsafeOpen', (o) => fastsafeOpen(path, o), 'abortSignal', 'signal'],
  ['copyFilesToDevice', (o) => loaded((loader) => loader.copyFilesToDevice(o)), 'dytpe', 'dtype'],
  ['fromFile', (o) => SafeTensorsMetadata.fromFile(path, o), 'allowTrailing', 'allowTrailingBytes'],
  [
    'fromBuffer',
    (o) => SafeTensorsMetadata.fromBuffer(new Uint8Array(8), o),
    'allowTrailingByte',
    'allowTrailingBytes',
  ],
  ['saveFile', (o) => saveFile([], path, o), 'metaData', 'metadata'],
  ['toHost', (o) => ofTensor((tensor) => tensor.toHost(o)), 'ofset', 'offset'],
  ['getSlice', (o) => opened((files) => files.getSlice('w', o)), 'stpo', 'stop'],
  ['loadConfig', (o) => loadConfig(o), 'pth', 'path'],
  ['createCopierConstructor', (o) => createCopierConstructor('nogds', 'cpu', o), 'maxThread', 'maxThreads'],
  ['mockCopier', (o) => mockCopier(o), 'delay', 'delayMs'],
  ['fakeReader', (o) => fakeReader(o), 'msPerIO', 'msPerIo'],
  ['useFakeDevices', (o) => useFakeDevices(o), 'copyDelay', 'copyDelayUs'],
  ['emulators.cuda.env', (o) => emulators.cuda.env(o), 'DEVICE', 'DEVICES'],
  ['emulators.hf3fs.env', (o) => emulators.hf3fs.env(o), 'LATENCY', 'LATENCY_MS'],
  ['createSession', (o) => createSession(ort, 'x', o), 'wieghts', 'weights'],
  ['safetensorsHandler', (o) => safetensorsHandler('x', o), 'modle', 'model'],
  ['loadGraphModel', (o) => loadGraphModel(TF, 'x', o), 'weight', 'weights'],
  ['loadLayersModel', (o) => loadLayersModel(TF, 'x', o), 'strikt', 'strict'],
];

test.each(DOORS)('%s names the nearest right option', async (_, call, wrong, right) => {
  expect((await refused(() => call({ [wrong]: 1 }))).message).toContain(`; did you mean "${right}"?`);
  // Without a value, too: it is the name that is wrong.
  await refused(() => call({ [wrong]: undefined }));
});

test.each(DOORS)('%s suggests nothing for a name that is near to none', async (_, call, __, right) => {
  const { message } = await refused(() => call({ zebracrossing: 1 }));
  expect(message).not.toContain('did you mean');
  expect(message).toMatch(/; there are |; the only one is /);
  expect(message).toContain(right);
});

test.each([
  ['new SafeTensorsFileLoader', () => new SafeTensorsFileLoader({ files: 'x' } as Any), /"files" here: .*addFilenames/],
  ['fastsafeOpen', () => fastsafeOpen(path, { queueSize: 1 } as Any), /"queueSize" here: it is one of ParallelLoader$/],
  [
    'a misspelled one',
    () => fastsafeOpen(path, { queuesize: 1 } as Any),
    /mean "queueSize"\? .* one of ParallelLoader$/,
  ],
  [
    'copyFilesToDevice',
    () => loaded((loader) => loader.copyFilesToDevice({ maxThreads: 1 })),
    /"maxThreads" here: it is one of the loader's constructor$/,
  ],
  ['createSession', () => createSession(ort, 'x', { maxThreads: 1 } as Any), /SafeTensorsFileLoader/],
  ['loadGraphModel', () => loadGraphModel(TF, 'x', { dtype: 'F16' } as Any), /the model decides/],
])('%s says whose an option is that belongs elsewhere', async (_, call, message) => {
  expect((await refused(call)).message).toMatch(message);
});

test.each([
  ['bbufSizeKb', /bounceBufferSize, in bytes: KiB \* 1024/],
  ['useTqdmOnLoad', /progress: true/],
  ['disableCache', /nothing: .*dropCache/],
  ['maxConcurrentProducers', /nothing: .*maxThreads/],
  ['allLocal', /nothing: .*pg/],
  ['useFgds', /copier: .*'gds'/],
  ['copierType', /copier, .*fallback: 'nogds'/],
  ['overlapIo', /nothing: .*overlap/],
  ['maxCopyBlockSize', /bounceBufferSize: bytes/],
  ['useBufRegister', /nothing: /],
  ['hfWeightsFiles', /files: paths/],
  ['tensorFilter', /filter: \(name, frame\) => boolean/],
  ['borrowedTensors', /borrow: true/],
  ['usePipeline', /queueSize: -1 is serial/],
  ['useChunkBudgetAsAllocationSize', /maxBatchBytes/],
  ['broadcastRunBytes', /nothing: /],
])('%s, a name of fastsafetensors, says what is here', async (name, says) => {
  const snakeCase = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  for (const given of [name, snakeCase]) {
    const doors: ((o: Any) => unknown)[] = [(o) => new ParallelLoader({ files: 'x', ...o })];
    doors.push(
      (o) => new AutoLoader({ files: 'x', ...o }),
      (o) => createCopierConstructor('nogds', 'cpu', o),
    );
    for (const door of doors) {
      const { message } = await refused(() => door({ [given]: 1 }));
      expect(message).toMatch(`there is no option "${given}"; that of fastsafetensors is `);
      expect(message).toMatch(says);
    }
    // Other loaders have not all of these options: they say who has.
    for (const door of [(o: Any) => new SafeTensorsFileLoader(o), (o: Any) => fastsafeOpen(path, o)]) {
      expect((await refused(() => door({ [given]: 1 }))).message).toMatch(says);
    }
  }
});

test('a name of fastsafetensors says whose the option is that belongs elsewhere', async () => {
  const ofCopy = await refused(() => loaded((loader) => loader.copyFilesToDevice({ max_copy_block_size: 1 })));
  expect(ofCopy.message).toMatch(/; bounceBufferSize is one of the loader's constructor$/);
  const ofOpen = await refused(() => fastsafeOpen(path, { borrowedTensors: true } as Any));
  expect(ofOpen.message).toMatch(/borrow: true; borrow is one of ParallelLoader$/);
});

test('where nothing like it is an option, a name of fastsafetensors is any other', async () => {
  const { message } = await refused(() => saveFile([], path, { bbufSizeKb: 1 } as Any));
  expect(message).toBe('there is no option "bbufSizeKb"; there are metadata, checksum');
});

test.each<[string, () => unknown]>([
  ['toHost with text', () => ofTensor((tensor) => tensor.toHost('x'))],
  ['toHost with null', () => ofTensor((tensor) => tensor.toHost(null))],
  ['toHost with a fraction', () => ofTensor((tensor) => tensor.toHost({ offset: 0.5 }))],
  ['toHost with text for a number', () => ofTensor((tensor) => tensor.toHost({ length: '1' }))],
  ['copyFilesToDevice with null', () => loaded((loader) => loader.copyFilesToDevice(null))],
  ['loadConfig with a number for a path', () => loadConfig({ path: 3 } as Any)],
  ['loadConfig with a path', () => loadConfig('fastsafetensors.json' as Any)],
  ['mockCopier with a text for a time', () => mockCopier({ delayMs: 'x' } as Any)],
  ['mockCopier with an object for a tensor', () => mockCopier({ failAt: {} } as Any)],
  ['mockCopier with tensor 0', () => mockCopier({ failAt: 0 })],
  ['mockCopier with numbers for bytes', () => mockCopier({ tensors: { w: [1] } } as Any)],
  ['createCopierConstructor with a wrong value', () => createCopierConstructor('nogds', 'cpu', { maxThreads: 0 })],
  ['createCopierConstructor with no options', () => createCopierConstructor('nogds', 'cpu', null as Any)],
  ['createCopierConstructor on no device', () => createCopierConstructor('nogds', 3 as Any)],
  ['addFilenames by what is no rank', () => loaded((loader) => loader.addFilenames({ files: path }))],
  ['addFilenames by a rank that is not there', () => loaded((loader) => loader.addFilenames({ 1: path }))],
  ['addFilenames by a rank with another zero', () => loaded((loader) => loader.addFilenames({ '00': path }))],
])('%s is refused', async (_, call) => {
  await refused(call);
});

test.each([
  ['cuda', 'control.h', /FST_EMU_CUDA_(\w+)=/g],
  ['cufile', 'control.h', /FST_EMU_CUFILE_(\w+)=/g],
  ['hf3fs', 'settings.cc', /name == "(\w+)"/g],
] as const)('the settings of the %s emulator are those of its %s', async (name, file, pattern) => {
  const source = readFileSync(join(__dirname, '../csrc/emulators', name, file), 'utf8');
  const settings = [...source.matchAll(pattern)].map(([, setting]) => setting!.toUpperCase());
  expect(settings.length).toBeGreaterThan(10);
  const prefix = `FST_EMU_${name.toUpperCase()}_`;
  for (const setting of settings) {
    expect(emulators[name].env({ [setting]: true })).toHaveProperty(prefix + setting, '1');
    expect(emulators[name].env({ [prefix + setting]: 7 })).toHaveProperty(prefix + setting, '7');
  }
  const { message } = await refused(() => emulators[name].env({ ZEBRACROSSING: 1 }));
  expect(message.split('there are ')[1]!.split(', ').sort()).toEqual([...settings].sort());
});

test('toHost still takes what it says', async () => {
  await ofTensor(async (tensor) => {
    expect([...(await tensor.toHost({ offset: 6 }))]).toEqual([6, 7]);
    expect([...(await tensor.toHost({ length: 2 }))]).toEqual([0, 1]);
    expect([...(await tensor.toHost({ offset: undefined, length: undefined }))]).toHaveLength(8);
    await refused(() => tensor.toHost({ offset: 7, length: 2 }));
    await refused(() => tensor.toHost({ offset: 9 }));
  });
});

test('a copier of the user’s own may take any options', () => {
  let seen: unknown;
  registerCopier('with options', (_, options) => {
    seen = options;
    return () => ({ submitIo() {}, waitIo: async () => {}, close: async () => {} });
  });
  createCopierConstructor('with options', 'cpu', { bucket: 'b' });
  expect(seen).toEqual({ bucket: 'b' });
});
