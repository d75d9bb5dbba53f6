import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import * as main from 'fastsafetensors-node';
import {
  AutoLoader,
  copierAvailability,
  createCopierConstructor,
  Device,
  doctor,
  extractMountPoint,
  type FilesBufferOnDevice,
  fastsafeOpen,
  getHf3fsLibPath,
  loadConfig,
  loadFile,
  nativeMetrics,
  ParallelLoader,
  ParallelThreeFSLoader,
  processGroupFromEnv,
  readHeadersBatch,
  registerCopier,
  registeredCopiers,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  saveFile,
  saveSharded,
  ThreeFSLoader,
} from 'fastsafetensors-node';
import * as ort from 'fastsafetensors-node/ort';
import { createSession, onnxruntime, registerBackend } from 'fastsafetensors-node/ort';
import * as testing from 'fastsafetensors-node/testing';
import { emulators, fakeReader, mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import * as tensorflow from 'fastsafetensors-node/tfjs';
import { loadGraphModel, loadLayersModel, safetensorsHandler, tfjs } from 'fastsafetensors-node/tfjs';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';
import { refused } from './support/refused.js';

// Maps, iterables and URLs work where records and arrays do; what is none of them is refused, and so are arguments that
// nobody takes: nothing that is given is taken for nothing.

// biome-ignore lint/suspicious/noExplicitAny: what is wrong must not be checked by the compiler.
type Any = any;

const A = [entry('wide', 'F32', [2, 3]), entry('bias', 'U8', [4])];
const B = [entry('tall', 'F32', [2, 3])];
const NAMES = ['wide', 'bias', 'tall'];

let folder: string;
let paths: [string, string];
beforeAll(async () => {
  folder = await newFolder();
  paths = [await writeModel(folder, A, 'a.safetensors'), await writeModel(folder, B, 'b.safetensors')];
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(() => expectNothingHeld());

function* twoPaths(): Generator<string | URL, void, void> {
  yield paths[0];
  yield pathToFileURL(paths[1]);
}

const LISTS: [string, () => Any][] = [
  ['an array', () => [...paths]],
  ['an array of URLs', () => paths.map((path) => pathToFileURL(path))],
  ['a Set', () => new Set(paths)],
  ['a generator', twoPaths],
  ["a Map's values", () => new Map([...paths.entries()]).values()],
];
const BY_RANK: [string, () => Any][] = [
  ['an object', () => ({ 0: paths })],
  ['a Map', () => new Map([[0, paths]])],
  ['a Map by texts', () => new Map([['0', new Set(paths)]])],
  ['a Map of a generator', () => new Map([[0, twoPaths()]])],
];

async function namesOf(loader: ParallelLoader): Promise<string[]> {
  const names: string[] = [];
  for await (const [name, tensor] of loader.iterateWeights()) {
    names.push(name);
    tensor.dispose();
  }
  return names;
}

describe.each([...LISTS, ...BY_RANK])('files as %s', (_, files) => {
  test('addFilenames', async () => {
    await using loader = new SafeTensorsFileLoader();
    await loader.addFilenames(files());
    expect(loader.keys()).toEqual(NAMES);
  });
});

describe.each(LISTS)('files as %s', (_, files) => {
  test.each([
    ['ParallelLoader', () => new ParallelLoader({ files: files() })],
    ['AutoLoader', () => new AutoLoader({ files: files() })],
  ])('%s, however often it is iterated', async (_, make) => {
    await using loader = make();
    expect(await namesOf(loader)).toEqual(NAMES);
    expect(await namesOf(loader)).toEqual(NAMES);
  });

  test('fastsafeOpen, readHeadersBatch', async () => {
    await using opened = await fastsafeOpen(files());
    expect(opened.keys()).toEqual(NAMES);
    expect([...(await readHeadersBatch(files())).keys()]).toEqual(paths);
  });

  test('loadFile', async () => {
    const tensors = await loadFile(files());
    expect(Object.keys(tensors)).toEqual(NAMES);
    for (const tensor of Object.values(tensors)) tensor.dispose();
  });

  test('safetensorsHandler', async () => {
    const model = { format: 'graph-model', modelTopology: {}, weightsManifest: [] };
    const handler = safetensorsHandler(files(), { model, stream: true });
    for (let i = 0; i < 2; ++i) expect((await handler.load()).weightSpecs.map((spec: Any) => spec.name)).toEqual(NAMES);
  });
});

test('a list is taken as it is when it is given', async () => {
  const files = [paths[0]];
  await using loader = new ParallelLoader({ files });
  files.push(paths[1]);
  expect(await namesOf(loader)).toEqual(['wide', 'bias']);
});

const NO_FILES: [string, () => Any][] = [
  ['nothing', () => undefined],
  ['null', () => null],
  ['a number', () => 7],
  ['bytes', () => Buffer.from(paths[0])],
  ['a boxed text', () => new String(paths[0])],
  ['an array of arrays', () => [[paths[0]]]],
  ['an empty name', () => ''],
  ['a Map of no ranks', () => new Map([['model', paths[0]]])],
  ['an iterable of pairs', () => Object.entries({ 0: paths[0] })],
  ['a promise', async () => paths[0]],
  ['a function', () => () => paths[0]],
  ['a Date', () => new Date(0)],
  ['an asynchronous iterable', async function* () {}],
];

test.each(NO_FILES)('%s as files is refused everywhere', async (_, files) => {
  await using loader = new SafeTensorsFileLoader();
  await refused(() => loader.addFilenames(files()));
  await refused(() => loader.addFilenames({ 0: files() ?? 0 }));
  await refused(() => loader.addFilenames(new Map([[0, files() ?? 0]])));
  await refused(async () => (await fastsafeOpen(files())).close());
  await refused(() => loadFile(files()));
  await refused(() => readHeadersBatch(files() === '' ? [''] : files()));
  for (const Loader of [ParallelLoader, AutoLoader]) {
    await refused(async () => {
      await using parallel = new Loader({ files: files() });
      await namesOf(parallel);
    });
  }
  await refused(() => safetensorsHandler(files(), { model: { format: 'graph-model', modelTopology: {} } }).load());
});

test('a rank is not given twice', async () => {
  await using loader = new SafeTensorsFileLoader();
  const twice = new Map<Any, Any>([
    [0, paths[0]],
    ['0', paths[1]],
  ]);
  expect((await refused(() => loader.addFilenames(twice))).message).toMatch(/addFilenames: .*rank 0 once/);
});

describe('a buffer', () => {
  let loader: SafeTensorsFileLoader;
  let buffer: FilesBufferOnDevice;
  beforeEach(async () => {
    loader = new SafeTensorsFileLoader();
    await loader.addFilenames(paths);
    buffer = await loader.copyFilesToDevice();
  });
  afterEach(async () => {
    await buffer.close();
    await loader.close();
  });

  test.each<[string, () => Any]>([
    ['an object', () => ({ tall: 0, bias: -1 })],
    ['an object without prototype', () => Object.assign(Object.create(null), { tall: 0, bias: -1 })],
    ['a Map', () => new Map(Object.entries({ tall: 0, bias: -1 }))],
    ['pairs', () => Object.entries({ tall: 0, bias: -1 })],
    ['an iterator of pairs', () => new Map(Object.entries({ tall: 0, bias: -1 })).entries()],
  ])('asDict of %s', async (_, dims) => {
    const tensors = await buffer.asDict(dims());
    expect([...tensors.keys()]).toEqual(['tall', 'bias']);
    expect(Buffer.from(await tensors.get('tall')!.toHost())).toEqual(Buffer.from(B[0]!.bytes));
    for (const tensor of tensors.values()) tensor.dispose();
  });

  test('asDict of nothing is nothing', async () => {
    expect((await buffer.asDict({})).size).toBe(0);
    expect((await buffer.asDict(new Map())).size).toBe(0);
  });

  test('asDict takes a name that is given twice once', async () => {
    const tensors = await buffer.asDict([
      ['tall', 0],
      ['tall', 1],
    ]);
    expect(tensors.size).toBe(1);
    tensors.get('tall')!.dispose();
  });

  test.each<[string, Any]>([
    ['nothing', undefined],
    ['null', null],
    ['a text', 'tall'],
    ['names', ['tall']],
    ['a Set', new Set(['tall'])],
    ['triples', [['tall', 0, 1]]],
    ['a Map of no dimensions', new Map([['tall', 'x']])],
    ['a promise', Promise.resolve({ tall: 0 })],
  ])('asDict of %s is refused', async (_, dims) => {
    await refused(() => buffer.asDict(dims));
  });

  test('getMultiCols of any iterable of names', async () => {
    for (const names of [new Set(['wide', 'tall']), ['wide', 'tall'].values()]) {
      const tensor = await buffer.getMultiCols(names, 0);
      expect(tensor.shape).toEqual([4, 3]);
      tensor.dispose();
    }
    for (const names of [undefined, 'wide', new Map([['wide', 'tall']]), { wide: 0 }, [], new Set()])
      await refused(() => buffer.getMultiCols(names as Any, 0));
  });

  test.each<[string, (buffer: Any) => unknown]>([
    ['keys', (b) => b.keys('x')],
    ['getShape', (b) => b.getShape('wide', 0)],
    ['frame', (b) => b.frame('wide', 0)],
    ['metadata', (b) => b.metadata('x')],
    ['getFilename', (b) => b.getFilename('wide', 0)],
    ['getTensor', (b) => b.getTensor('wide', {}, 'F16')],
    ['getSharded', (b) => b.getSharded('wide', 0, {}, 'F16')],
    ['pushTensor', (b) => b.pushTensor('wide', 0, {}, 'F16')],
    ['getMultiCols', (b) => b.getMultiCols(['wide'], 0, {}, 'F16')],
    ['asDict', (b) => b.asDict({ wide: 0 }, {}, 'F16')],
  ])('%s of a buffer takes no argument more', async (name, call) => {
    expect((await refused(() => call(buffer))).message).toMatch(new RegExp(`^${name}: expected`));
  });
});

test('saveFile takes its metadata as a Map', async () => {
  const path = join(folder, 'saved.safetensors');
  await saveFile([], path, { metadata: new Map([['format', 'pt']]) });
  expect([...(await SafeTensorsMetadata.fromFile(path)).metadata]).toEqual([['format', 'pt']]);
  for (const metadata of [['format'], new Set(['format']), Promise.resolve({}), new Map([[1, 'x']]), 'pt'])
    await refused(() => saveFile([], path, { metadata: metadata as Any }));
});

test('names of a model are a Map, too', async () => {
  const model = {
    format: 'graph-model',
    modelTopology: {},
    weightsManifest: [{ paths: [], weights: [{ name: 'w', shape: [2, 3], dtype: 'float32' }] }],
  };
  const names = new Map([['w', 'tall']]);
  const { weightSpecs } = await safetensorsHandler(paths[1], { model, names, stream: true }).load();
  expect(weightSpecs.map((spec: Any) => spec.name)).toEqual(['w']);
  for (const wrong of [['tall'], new Set(['tall']), 3, Promise.resolve(names)])
    await refused(() => safetensorsHandler(paths[1], { model, names: wrong as Any }));
});

test('settings of an emulator are a Map, too', async () => {
  expect(emulators.cuda.env(new Map([['DEVICES', 2]]))).toHaveProperty('FST_EMU_CUDA_DEVICES', '2');
  await refused(() => emulators.cuda.env(new Set(['DEVICES']) as Any));
});

// What would be an empty object of options when it is spread.
const NO_OPTIONS: [string, () => Any][] = [
  ['a Map', () => new Map([['device', 'cuda:0']])],
  ['a Set', () => new Set(['device'])],
  ['a URL', () => new URL('file:///x')],
  ['a promise', async () => ({ device: 'cuda:0' })],
  ['a signal', () => new AbortController().signal],
];
const TAKE_OPTIONS: [string, (options: Any) => unknown][] = [
  ['SafeTensorsFileLoader', (o) => new SafeTensorsFileLoader(o)],
  ['ThreeFSLoader', (o) => new ThreeFSLoader(o)],
  ['ParallelLoader', (o) => new ParallelLoader(o)],
  ['ParallelThreeFSLoader', (o) => new ParallelThreeFSLoader(o)],
  ['AutoLoader', (o) => new AutoLoader(o)],
  ['fastsafeOpen', async (o) => (await fastsafeOpen(paths[0], o)).close()],
  ['loadFile', (o) => loadFile(paths[0], o)],
  ['fromFile', (o) => SafeTensorsMetadata.fromFile(paths[0], o)],
  ['readHeadersBatch', (o) => readHeadersBatch(paths, o)],
  ['saveFile', (o) => saveFile([], join(folder, 'none.safetensors'), o)],
  ['loadConfig', (o) => loadConfig(o)],
  ['createCopierConstructor', (o) => createCopierConstructor('nogds', 'cpu', o)],
  ['mockCopier', (o) => mockCopier(o)],
  ['safetensorsHandler', (o) => safetensorsHandler('x', o)],
];
describe.each(NO_OPTIONS)('%s as options', (_, options) => {
  test.each(TAKE_OPTIONS)('%s refuses', async (_, call) => {
    await refused(() => call(options()));
  });
});

const file = () => paths[0];
const TOO_MANY: [string, () => unknown][] = [
  ['SafeTensorsFileLoader', () => new (SafeTensorsFileLoader as Any)(undefined, 'cuda:0')],
  ['ThreeFSLoader', () => new (ThreeFSLoader as Any)({}, 'cuda:0')],
  ['ParallelLoader', () => new (ParallelLoader as Any)({ files: 'x' }, 'cuda:0')],
  ['ParallelThreeFSLoader', () => new (ParallelThreeFSLoader as Any)({ files: 'x' }, 'cuda:0')],
  ['AutoLoader', () => new (AutoLoader as Any)({ files: 'x' }, 'cuda:0')],
  ['fastsafeOpen', () => (fastsafeOpen as Any)(file(), {}, 'cuda:0')],
  ['loadFile', () => (loadFile as Any)(file(), {}, 'cuda:0')],
  ['addFilenames', () => loaded((loader) => loader.addFilenames(...paths))],
  ['keys', () => loaded((loader) => loader.keys('x'))],
  ['getShape', () => loaded((loader) => loader.getShape('wide', 0))],
  ['frame', () => loaded((loader) => loader.frame('wide', 0))],
  ['metadata', () => loaded((loader) => loader.metadata('x'))],
  ['estimate', () => loaded((loader) => loader.estimate('x'))],
  ['copyFilesToDevice', () => loaded((loader) => loader.copyFilesToDevice({}, true))],
  ['iterateWeights', () => (new ParallelLoader({ files: file() }) as Any).iterateWeights('x').next()],
  ['keys', () => opened((files) => files.keys('x'))],
  ['metadata', () => opened((files) => files.metadata('x'))],
  ['getTensor', () => opened((files) => files.getTensor('wide', {}, 'F16'))],
  ['toHost', () => tensor((wide) => wide.toHost({ offset: 0 }, 4))],
  ['clone', () => tensor((wide) => wide.clone('cuda:0'))],
  ['share', () => tensor((wide) => wide.share('x'))],
  ['exportHandle', () => (main.exportHandle as Any)([], {})],
  ['importTensors', () => (main.importTensors as Any)([], {})],
  ['serveHandle', () => (main.serveHandle as Any)('x', { fd: 0, description: '' }, {})],
  ['receiveHandle', () => (main.receiveHandle as Any)('x', {})],
  ['nccl', () => (main.nccl as Any)({ uniqueId: new Uint8Array(128) }, {})],
  ['ncclUniqueId', () => (main.ncclUniqueId as Any)({})],
  ['fromFile', () => (SafeTensorsMetadata.fromFile as Any)(file(), {}, true)],
  ['fromBuffer', () => (SafeTensorsMetadata.fromBuffer as Any)(new Uint8Array(8), {}, true)],
  ['keys', async () => ((await SafeTensorsMetadata.fromFile(file())) as Any).keys(1)],
  ['has', async () => ((await SafeTensorsMetadata.fromFile(file())) as Any).has('wide', 1)],
  ['get', async () => ((await SafeTensorsMetadata.fromFile(file())) as Any).get('wide', 1)],
  ['readHeadersBatch', () => (readHeadersBatch as Any)(paths, {}, 4)],
  ['saveFile', () => (saveFile as Any)([], join(folder, 'none.safetensors'), {}, { format: 'pt' })],
  ['saveSharded', () => (saveSharded as Any)([], join(folder, 'none'), {}, { format: 'pt' })],
  ['processGroupFromEnv', () => (processGroupFromEnv as Any)({}, 'x')],
  ['loadConfig', () => (loadConfig as Any)({}, 'x')],
  ['registerCopier', () => (registerCopier as Any)('nogds', undefined, {})],
  ['registeredCopiers', () => (registeredCopiers as Any)('x')],
  ['createCopierConstructor', () => (createCopierConstructor as Any)('nogds', 'cpu', {}, 1)],
  ['copierAvailability', () => (copierAvailability as Any)('nogds', 'cpu', 1)],
  ['extractMountPoint', () => (extractMountPoint as Any)('/', '/')],
  ['getHf3fsLibPath', () => (getHf3fsLibPath as Any)('x')],
  ['nativeMetrics', () => (nativeMetrics as Any)('x')],
  ['Device.parse', () => (Device.parse as Any)('cuda', 1)],
  ['mockCopier', () => (mockCopier as Any)({}, 1)],
  ['expertParallelFilter', () => (main.expertParallelFilter as Any)({ numExperts: 4, size: 2, rank: 0 }, 2)],
  ['expertParallelFilterFromEnv', () => (main.expertParallelFilterFromEnv as Any)('x')],
  ['ownedExpertRange', () => (main.ownedExpertRange as Any)(4, 2, 0, 1)],
  ['fakeReader', () => (fakeReader as Any)({}, 1)],
  ['useFakeDevices', () => (useFakeDevices as Any)(null, 1)],
  ['env', () => (emulators.cuda.env as Any)({}, 1)],
  ['createSession', () => (createSession as Any)({}, 'x', {}, 'cuda:0')],
  ['doctor', () => (doctor as Any)({}, 'x')],
  ['onnxruntime', () => (onnxruntime as Any)({ Tensor: class {} }, {})],
  ['registerBackend', () => (registerBackend as Any)({}, {})],
  ['tfjs', () => (tfjs as Any)({}, {})],
  ['safetensorsHandler', () => (safetensorsHandler as Any)('x', {}, 'x')],
  ['loadGraphModel', () => (loadGraphModel as Any)({}, 'x', {}, 'x')],
  ['loadLayersModel', () => (loadLayersModel as Any)({}, 'x', {}, 'x')],
];

async function loaded(use: (loader: Any) => unknown): Promise<unknown> {
  await using loader = new SafeTensorsFileLoader();
  await loader.addFilenames(paths);
  return await use(loader);
}

async function opened(use: (files: Any) => unknown): Promise<unknown> {
  await using files = await fastsafeOpen(paths);
  return await use(files);
}

function tensor(use: (tensor: Any) => unknown): Promise<unknown> {
  return opened(async (files) => {
    using wide = await files.getTensor('wide');
    return await use(wide);
  });
}

test.each(TOO_MANY)('%s refuses arguments that it does not take', async (name, call) => {
  const { message } = await refused(call);
  expect(message).toMatch(new RegExp(`^${name}: expected (no argument|one argument|at most \\d arguments), found \\d`));
  expect(message).toMatch(/options go together into one object/);
});

test('arguments without a value are none, and ends of lives take any', async () => {
  const loader = new (SafeTensorsFileLoader as Any)({}, undefined);
  await loader.addFilenames(paths, undefined, undefined);
  const buffer = await loader.copyFilesToDevice(undefined, undefined);
  const tensor = await buffer.getTensor('wide');
  tensor.dispose('now');
  loader.reset('now');
  await buffer.close('now');
  await loader.close('now');
});

test('every function that the package exports is among those tried', () => {
  const entries = [main, ort, testing, tensorflow];
  const functions = entries.flatMap((exported) => Object.entries(exported));
  // Made by this package, or as any Error is.
  const others = ['default', 'DeviceTensor', 'FilesBufferOnDevice', 'TensorFrame', 'SingleGroup', 'OrtDeviceBuffer'];
  const tried = new Set(TOO_MANY.map(([name]) => name));
  const left = functions
    .filter(([name, value]) => typeof value === 'function' && !name.endsWith('Error') && !others.includes(name))
    .map(([name]) => name)
    .filter((name) => !tried.has(name) && name !== 'Device' && name !== 'SafeTensorsMetadata');
  expect(left).toEqual([]);
});
