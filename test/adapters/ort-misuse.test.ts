/** @jest-environment ./test/support/native-arrays-environment.js */
import { setImmediate } from 'node:timers/promises';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { FastSafetensorsError, SafeTensorsFileLoader } from '../../src/index.js';
import { noise } from '../../src/models/onnx/noise.js';
import { expectNothingHeld } from '../support/metrics.js';
import { externalTensor, floats, model, node, rawTensor, value } from '../support/onnx-model.js';
import { collectedMetrics, NOTHING_HELD, testFolder, writeTensors } from '../support/tensor-files.js';

// Whatever a program does wrong is a typed error that says where: never a crash, a hang or a result.

const folder = testFolder();
const MODEL = model({
  nodes: [node('Add', ['x', 'w'], ['y'])],
  initializers: [rawTensor('w', [512], floats(512))],
  inputs: [value('x', [512])],
  outputs: [value('y', [512])],
});
const STRINGS = model({
  nodes: [node('Identity', ['x'], ['y'])],
  inputs: [value('x', [4], 8)],
  outputs: [value('y', [4], 8)],
});
const sum = Float32Array.from(floats(512), (v) => 2 * v);
const x = () => new ort.Tensor('float32', floats(512), [512]);
const like = (fields: object) => ({ type: 'float32', dims: [512], location: 'cpu', data: floats(512), ...fields });
const transferred = () => {
  const tensor = x();
  structuredClone(tensor.data.buffer, { transfer: [(tensor.data as Float32Array).buffer as ArrayBuffer] });
  return tensor;
};
const disposed = () => {
  const tensor = x();
  tensor.dispose();
  return tensor;
};

describe('a feed', () => {
  let session: ort.InferenceSession;
  let strings: ort.InferenceSession;
  beforeAll(async () => {
    session = await createSession(ort, MODEL);
    strings = await createSession(ort, STRINGS);
  });
  afterEach(async () => expect((await session.run({ x: x() })).y!.data).toEqual(sum));
  afterAll(() => Promise.all([session.release(), strings.release()]));

  test.each<[string, () => unknown, RegExp]>([
    ['null', () => null, /expected a tensor, found null/],
    ['a number', () => 5, /expected a tensor, found number/],
    ['an array', () => [1, 2], /expected a tensor/],
    ['a name in its dims', () => like({ dims: ['batch'] }), /whole numbers from 0 as its dims, found batch/],
    ['half a dim', () => like({ dims: [512.5] }), /found 512\.5/],
    ['a negative dim', () => like({ dims: [-1] }), /found -1/],
    ['a bigint dim', () => like({ dims: [512n] }), /found 512/],
    ['more elements than can be', () => like({ dims: [2 ** 32, 2 ** 32] }), /more elements than can be/],
    ['no data', () => like({ data: undefined }), /typed array as its data, found undefined/],
    ['text as data', () => like({ data: 'text' }), /typed array as its data, found string/],
    ['too little data', () => like({ data: floats(4) }), /float32 \[512\] needs 2048 bytes, its data have 16/],
    ['data that were transferred', transferred, /needs 2048 bytes, its data have 0/],
    ['an unknown type', () => like({ type: 'constructor' }), /unknown element type 'constructor'/],
    ['another type', () => like({ type: 'int32', data: new Int32Array(512) }), /Unexpected input data type/],
    ['another shape', () => like({ dims: [16, 32] }), /Invalid rank/],
    ['a place that there is not', () => like({ location: 'texture' }), /found location 'texture'/],
    ['a buffer of somebody else', () => like({ location: 'gpu-buffer', gpuBuffer: {} }), /not of this package/],
  ])('%s', async (_, feed, message) => {
    await expect(session.run({ x: feed() as never })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });

  test('that was disposed', async () => {
    await expect(session.run({ x: disposed() })).rejects.toMatchObject({ code: 'CLOSED' });
  });

  test.each([
    ['numbers', [1, 2, 3, 4]],
    ['too few', ['a']],
    ['nothing', null],
  ])('of strings with %s', async (_, data) => {
    const feed = { type: 'string', dims: [4], location: 'cpu', data };
    await expect(strings.run({ x: feed as never })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('an array of 4 strings'),
    });
  });

  test('in shared or resizable memory is as good as any', async () => {
    const shared = new Float32Array(new SharedArrayBuffer(2048));
    const Resizable = ArrayBuffer as unknown as new (length: number, options: object) => ArrayBuffer;
    const resizable = new Float32Array(new Resizable(2048, { maxByteLength: 4096 }));
    for (const data of [shared, resizable]) {
      data.set(floats(512));
      expect((await session.run({ x: like({ data }) as never })).y!.data).toEqual(sum);
    }
  });

  test.each([
    [{ signal: 5 }, 'INVALID_ARGUMENT'],
    [{ signal: {} }, 'INVALID_ARGUMENT'],
    [{ tag: 5 }, 'INVALID_ARGUMENT'],
    [{ logSeverityLevel: 'x' }, 'INVALID_ARGUMENT'],
    [{ logSeverityLevel: 99 }, 'ORT_ERROR'],
    [{ extra: 'x' }, 'INVALID_ARGUMENT'],
    [{ terminate: true }, 'CLOSED'],
  ])('with the run option %j', async (options, code) => {
    await expect(session.run({ x: x() }, options as never)).rejects.toMatchObject({ code });
  });

  test('beside one that the model has not', async () => {
    await expect(session.run({ x: x(), z: x() })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'the model has no input "z"; its inputs are "x"',
    });
  });
});

const cyclic: Record<string, unknown> = {};
cyclic.a = cyclic;
test.each<[object, RegExp]>([
  [{ externalData: 5 }, /externalData: expected an array/],
  [{ externalData: [null] }, /externalData: expected paths/],
  [{ externalData: [{ path: 'w' }] }, /a path or bytes for "w"/],
  [{ freeDimensionOverrides: { a: 'x' } }, /freeDimensionOverrides\.a: expected a whole number/],
  [{ freeDimensionOverrides: 5 }, /freeDimensionOverrides: expected an object/],
  [{ enableCpuMemArena: 'yes' }, /enableCpuMemArena: expected a boolean, found yes/],
  [{ optimizedModelFilePath: 5 }, /optimizedModelFilePath: expected a string/],
  [{ intraOpNumThreads: 2 ** 40 }, /intraOpNumThreads: expected a whole number/],
  [{ executionMode: 'x' }, /executionMode: expected one of sequential, parallel/],
  [{ extra: { a: null } }, /extra\.a: expected a string or an object, found null/],
  [{ extra: cyclic }, /extra\.a: it contains itself/],
  [{ preferredOutputLocation: 5 }, /preferredOutputLocation: expected 'cpu' or 'gpu-buffer'/],
])('session options %#', async (sessionOptions, message) => {
  await expect(createSession(ort, MODEL, { sessionOptions: sessionOptions as never })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringMatching(message),
  });
});

/** createSession's own error, if it gives one; whatever it gives is checked. */
async function attempt(bytes: Uint8Array, weights?: string): Promise<boolean> {
  try {
    const session = await createSession(ort, bytes, { weights, sessionOptions: { logSeverityLevel: 4 } });
    await session.release();
    return true;
  } catch (error) {
    if (!(error instanceof FastSafetensorsError)) throw error;
    expect(error.message.length).toBeGreaterThan(20);
    return false;
  }
}

test('a model that was cut off anywhere, or changed in any byte, is refused or is another model', async () => {
  const weights = await writeTensors(`${folder}/w.safetensors`, {
    w: { dtype: 'F32', shape: [512], data: floats(512) },
  });
  const small = model({
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [externalTensor('w', [512], { location: 'gone', offset: '0', length: '2048' })],
    inputs: [value('x', [512])],
    outputs: [value('y', [512])],
  });
  for (let length = 0; length < small.length; ++length) {
    expect(await attempt(small.subarray(0, length), weights)).toBe(false);
  }
  const places = noise(300, 7);
  let refused = 0;
  for (let i = 0; i < small.length; ++i) {
    const changed = Uint8Array.from(small);
    changed[i] = (changed[i]! + 1 + Math.floor((places[i % 300]! + 1) * 127)) & 255;
    if (!(await attempt(changed, weights))) ++refused;
  }
  expect(refused).toBeGreaterThan(small.length / 4);
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});

test('createSession is aborted at every moment', async () => {
  const weights = await writeTensors(`${folder}/a.safetensors`, {
    w: { dtype: 'F32', shape: [512], data: floats(512) },
  });
  const reason = new Error('enough');
  let aborted = 0;
  for (let moment = 0; moment < 60; ++moment) {
    const controller = new AbortController();
    const making = createSession(ort, MODEL, { weights, signal: controller.signal }).then(
      (session) => session.release(),
      (error) => {
        expect(error).toBe(reason);
        ++aborted;
      },
    );
    for (let turn = 0; turn < moment; ++turn) await (moment < 20 ? null : setImmediate());
    controller.abort(reason);
    await making;
  }
  expect(aborted).toBeGreaterThan(10);
  await expectNothingHeld(); // without a collection
});

test('a buffer of weights that is closed while a session is made of it', async () => {
  const weights = await writeTensors(`${folder}/b.safetensors`, {
    w: { dtype: 'F32', shape: [512], data: floats(512) },
  });
  for (let turn = 0; turn < 20; ++turn) {
    const loader = new SafeTensorsFileLoader();
    await loader.addFilenames(weights);
    const buffer = await loader.copyFilesToDevice();
    await loader.close();
    const making = createSession(ort, MODEL, { weights: buffer }).then(
      async (session) => {
        expect((await session.run({ x: x() })).y!.data).toEqual(sum);
        await session.release();
      },
      (error) => expect(error).toMatchObject({ code: 'CLOSED' }),
    );
    for (let i = 0; i < turn; ++i) await (turn % 2 ? null : setImmediate());
    await buffer.close();
    await making;
  }
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});
