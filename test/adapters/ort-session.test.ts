/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession, OrtDeviceBuffer, registerBackend } from '../../adapters/ort/index.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import { externalTensor, floats, graph, model, node, rawTensor, value } from '../support/onnx-model.js';

const PROVIDER = { executionProviders: ['fastsafetensors'] };

/** y = x + w, z = x * w, over 512 floats. */
const TWO_OUTPUTS = model({
  nodes: [node('Add', ['x', 'w'], ['y']), node('Mul', ['x', 'w'], ['z'])],
  initializers: [rawTensor('w', [512], floats(512))],
  inputs: [value('x', [512])],
  outputs: [value('y', [512]), value('z', [512])],
});

/** y = x, of one type, 4 elements. */
const identity = (type: number) =>
  model({ nodes: [node('Identity', ['x'], ['y'])], inputs: [value('x', [4], type)], outputs: [value('y', [4], type)] });

const x = (scale = 1) => new ort.Tensor('float32', floats(512, scale), [512]);
const sum = (scale = 1) => Float32Array.from(floats(512), (w, i) => w + scale * (i - 256));
const product = (scale = 1) => Float32Array.from(floats(512), (w, i) => w * Math.fround(scale * (i - 256)));
const settle = async () => {
  for (let i = 0; i < 200 && nativeMetrics().hostBytes > 0; ++i) await new Promise((resolve) => setTimeout(resolve, 5));
};

beforeAll(() => registerBackend(ort));

test('an execution provider of the name runs a model through ort.InferenceSession', async () => {
  const session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
  expect(session).toBeInstanceOf(ort.InferenceSession);
  const { y, z } = await session.run({ x: x() });
  expect(y).toBeInstanceOf(ort.Tensor);
  expect(y!.data).toEqual(sum());
  expect(z!.data).toEqual(product());
  await session.release();
});

test('names and metadata are those that onnxruntime-node gives', async () => {
  const open = model({
    nodes: [node('Identity', ['x'], ['y'])],
    inputs: [value('x', [2, 3], 7)],
    outputs: [value('y', [2, 3], 7)],
  });
  for (const bytes of [TWO_OUTPUTS, open]) {
    const ours = await ort.InferenceSession.create(bytes, PROVIDER);
    const theirs = await ort.InferenceSession.create(bytes);
    for (const key of ['inputNames', 'outputNames', 'inputMetadata', 'outputMetadata'] as const) {
      expect(ours[key]).toEqual(theirs[key]);
    }
    await Promise.all([ours.release(), theirs.release()]);
  }
});

test('registering twice, through either form of import, is once', () => {
  expect(() => registerBackend(ort)).not.toThrow();
  expect(() => registerBackend(require('onnxruntime-node'))).not.toThrow();
});

test('registerBackend refuses what is not the module', () => {
  expect(() => registerBackend({})).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
});

describe('fetches', () => {
  let session: ort.InferenceSession;
  beforeAll(async () => {
    session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
  });
  afterAll(() => session.release());

  test('by name: only those are computed', async () => {
    const outputs = await session.run({ x: x() }, ['z']);
    expect(Object.keys(outputs)).toEqual(['z']);
    expect(outputs.z!.data).toEqual(product());
  });

  test('a tensor that is given is written', async () => {
    const mine = new ort.Tensor('float32', new Float32Array(512), [512]);
    const { y } = await session.run({ x: x() }, { y: mine });
    expect(y).toBe(mine);
    expect(mine.data).toEqual(sum());
  });

  test('a given tensor of another shape is refused', async () => {
    const wrong = new ort.Tensor('float32', new Float32Array(8), [8]);
    await expect(session.run({ x: x() }, { y: wrong })).rejects.toMatchObject({
      code: expect.stringMatching(/INVALID_ARGUMENT|ORT_ERROR/),
    });
  });
});

test('many runs at once each give their own outputs', async () => {
  const session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
  const runs = Array.from({ length: 64 }, (_, i) => session.run({ x: x(i + 1) }));
  for (const [i, { y }] of (await Promise.all(runs)).entries()) expect(y!.data).toEqual(sum(i + 1));
  await session.release();
});

describe('element types go in and come out bit by bit', () => {
  const cases: [string, number, ArrayBufferView][] = [
    ['float32', 1, Float32Array.of(1.5, -0, Number.NaN, 3e38)],
    ['uint8', 2, Uint8Array.of(0, 1, 254, 255)],
    ['int8', 3, Int8Array.of(0, 1, -128, 127)],
    ['uint16', 4, Uint16Array.of(0, 1, 65535, 256)],
    ['int16', 5, Int16Array.of(0, 1, -32768, 32767)],
    ['int32', 6, Int32Array.of(0, 1, -(2 ** 31), 2 ** 31 - 1)],
    ['int64', 7, BigInt64Array.of(0n, 1n, -(2n ** 63n), 2n ** 63n - 1n)],
    ['bool', 9, Uint8Array.of(0, 1, 1, 0)],
    ['float16', 10, Uint16Array.of(0x3c00, 0x8000, 0x7bff, 0x0001)],
    ['float64', 11, Float64Array.of(1.5, -0, 5e-324, 1e308)],
    ['uint32', 12, Uint32Array.of(0, 1, 2 ** 32 - 1, 7)],
    ['uint64', 13, BigUint64Array.of(0n, 1n, 2n ** 64n - 1n, 7n)],
  ];
  const bits = (array: ArrayBufferView) =>
    Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString('hex');
  test.each(cases)('%s', async (type, number, data) => {
    const session = await ort.InferenceSession.create(identity(number), PROVIDER);
    const { y } = await session.run({ x: new ort.Tensor(type as 'float32', data as Float32Array, [4]) });
    expect(y!.type).toBe(type);
    expect(y!.dims).toEqual([4]);
    expect(bits(y!.data as Float32Array)).toBe(bits(data));
    await session.release();
  });

  test.each([
    ['uint4', 21],
    ['int4', 22],
  ] as const)('%s, two in a byte', async (type, number) => {
    const parts = {
      nodes: [node('Cast', ['x'], ['y'], { to: { int: number } })],
      inputs: [value('x', [3], number)],
      outputs: [value('y', [3], number)],
    };
    const session = await ort.InferenceSession.create(model({ ...parts, opsets: { '': 21 } }, 10), PROVIDER);
    const { y } = await session.run({ x: new ort.Tensor(type, Uint8Array.of(0x8f, 0x07), [3]) });
    expect([y!.type, y!.dims, bits(y!.data as Uint8Array)]).toEqual([type, [3], '8f07']);
    await session.release();
  });

  test('string', async () => {
    const session = await ort.InferenceSession.create(identity(8), PROVIDER);
    const { y } = await session.run({ x: new ort.Tensor('string', ['', 'a', 'äöü', 'x'.repeat(1000)], [4]) });
    expect(y!.data).toEqual(['', 'a', 'äöü', 'x'.repeat(1000)]);
    await session.release();
  });

  test('what JavaScript has no type for is refused by name', async () => {
    const session = await ort.InferenceSession.create(
      model({
        nodes: [node('Identity', ['x'], ['y'])],
        inputs: [value('x', [4], 16)],
        outputs: [value('y', [4], 16)],
      }),
      PROVIDER,
    );
    await expect(session.run({ x: x() })).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'y' });
    await session.release();
  });
});

describe("outputs that stay on the device (preferredOutputLocation: 'gpu-buffer')", () => {
  test('are gpu-buffer tensors: read, fed again, disposed', async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, {
      ...PROVIDER,
      preferredOutputLocation: 'gpu-buffer',
    });
    const { y } = await session.run({ x: x() }, ['y']);
    expect(y!.location).toBe('gpu-buffer');
    expect(y!.gpuBuffer).toBeInstanceOf(OrtDeviceBuffer);
    const again = await session.run({ x: y! }, ['y']);
    expect(await again.y!.getData()).toEqual(Float32Array.from(sum(), (s, i) => s + (i - 256)));
    const data = await y!.getData(true);
    expect(data).toEqual(sum());
    await session.release();
    expect(data).toEqual(sum());
  });

  test('one by one, the others on the cpu', async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, {
      ...PROVIDER,
      preferredOutputLocation: { z: 'gpu-buffer' },
    });
    const { y, z } = await session.run({ x: x() });
    expect([y!.location, z!.location]).toEqual(['cpu', 'gpu-buffer']);
    z!.dispose();
    await session.release();
  });

  test('outlive their session', async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, {
      ...PROVIDER,
      preferredOutputLocation: 'gpu-buffer',
    });
    const { y } = await session.run({ x: x() });
    await session.release();
    expect(await y!.getData()).toEqual(sum());
  });

  test('a disposed one cannot be fed', async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, {
      ...PROVIDER,
      preferredOutputLocation: 'gpu-buffer',
    });
    const { y } = await session.run({ x: x() });
    const { gpuBuffer } = y!;
    y!.dispose();
    const stale = ort.Tensor.fromGpuBuffer(gpuBuffer, { dataType: 'float32', dims: [512] });
    await expect(session.run({ x: stale })).rejects.toMatchObject({ code: 'CLOSED' });
    await session.release();
  });

  test("another program's gpuBuffer is refused", async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
    const foreign = ort.Tensor.fromGpuBuffer({} as never, { dataType: 'float32', dims: [512] });
    await expect(session.run({ x: foreign })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await session.release();
  });

  test('an unknown location is refused', async () => {
    const options = { ...PROVIDER, preferredOutputLocation: 'texture' as const };
    await expect(ort.InferenceSession.create(TWO_OUTPUTS, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('an output that is no result of its own', () => {
  const passing = model({
    nodes: [node('Identity', ['x'], ['y'])],
    initializers: [rawTensor('w', [512], floats(512))],
    inputs: [value('x', [512])],
    outputs: [value('y', [512]), value('w', [512])],
  });
  test.each(['disabled', 'all'] as const)('is a copy, which may be written (optimization %s)', async (level) => {
    const session = await ort.InferenceSession.create(passing, { ...PROVIDER, graphOptimizationLevel: level });
    const input = x();
    const { y, w } = await session.run({ x: input });
    (y!.data as Float32Array).fill(0);
    (w!.data as Float32Array).fill(0);
    expect(input.data).toEqual(floats(512));
    expect((await session.run({ x: input })).w!.data).toEqual(floats(512));
    await session.release();
  });
});

describe('the end of a session', () => {
  test('later runs are CLOSED, a second release does nothing', async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
    await session.release();
    await session.release();
    await expect(session.run({ x: x() })).rejects.toMatchObject({ code: 'CLOSED' });
  });

  test('outputs stay valid', async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
    const { y } = await session.run({ x: x() });
    await session.release();
    expect(y!.data).toEqual(sum());
  });

  test('runs in progress end with their result or CLOSED', async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
    const runs = Array.from({ length: 16 }, () =>
      session.run({ x: x() }).then(
        ({ y }) => y!.data,
        (error) => error.code,
      ),
    );
    await session.release();
    for (const outcome of await Promise.all(runs)) {
      if (outcome !== 'CLOSED') expect(outcome).toEqual(sum());
    }
  });
});

describe('aborting', () => {
  test('a run rejects with the reason', async () => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
    const reason = new Error('enough');
    await expect(session.run({ x: x() }, { signal: AbortSignal.abort(reason) } as object)).rejects.toBe(reason);
    const controller = new AbortController();
    const run = session.run({ x: x() }, { signal: controller.signal } as object);
    controller.abort(reason);
    await expect(run).rejects.toBe(reason);
    expect((await session.run({ x: x() })).y!.data).toEqual(sum());
    await session.release();
  });

  test('createSession rejects with the reason and leaves nothing', async () => {
    const reason = new Error('enough');
    await expect(createSession(ort, TWO_OUTPUTS, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    const controller = new AbortController();
    const making = createSession(ort, TWO_OUTPUTS, { signal: controller.signal });
    controller.abort(reason);
    await expect(making).rejects.toBe(reason);
    await settle();
    expect(nativeMetrics().hostBytes).toBe(0);
  });
});

describe('what does not fit is a typed error', () => {
  const refused = async (run: (session: ort.InferenceSession) => Promise<unknown>, code: string) => {
    const session = await ort.InferenceSession.create(TWO_OUTPUTS, PROVIDER);
    await expect(run(session)).rejects.toMatchObject({ code, name: 'FastSafetensorsError' });
    await session.release();
  };
  test('an input of another name', () => refused((s) => s.run({ x: x(), bogus: x() }), 'INVALID_ARGUMENT'));
  test('an input of another type', () =>
    refused((s) => s.run({ x: new ort.Tensor('int32', new Int32Array(512), [512]) }), 'INVALID_ARGUMENT'));
  test('an input of another shape', () =>
    refused((s) => s.run({ x: new ort.Tensor('float32', new Float32Array(4), [4]) }), 'INVALID_ARGUMENT'));
  test('bytes that are no model', async () => {
    await expect(createSession(ort, Buffer.from('not a model'))).rejects.toMatchObject({
      code: expect.stringMatching(/INVALID_ARGUMENT|UNEXPECTED_EOF/),
    });
  });
  test('a path where nothing is', async () => {
    await expect(createSession(ort, '/nowhere/model.onnx')).rejects.toMatchObject({ code: 'IO_ERROR' });
  });
  test.each([
    [{ device: 'tpu' }, /device/],
    [{ wieghts: 'm.safetensors' }, /did you mean "weights"/],
    [{ sessionOptions: { executionProviders: ['cpu'] } }, /executionProviders/],
    [{ sessionOptions: { graphOptimizationLevel: 'most' } }, /graphOptimizationLevel/],
    [{ sessionOptions: { intraOpNumThreads: -1 } }, /intraOpNumThreads/],
    [{ onProgress: 1 }, /onProgress/],
  ])('createSession with %j', async (options, message) => {
    const error = await createSession(ort, TWO_OUTPUTS, options as object).catch((e) => e);
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) });
    expect(error).toBeInstanceOf(TypeError);
  });
});

describe('session options arrive', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'ort-session-'));
  });
  afterAll(() => rm(folder, { recursive: true }));

  test('optimizedModelFilePath and graphOptimizationLevel', async () => {
    const written = join(folder, 'optimized.onnx');
    const session = await createSession(ort, TWO_OUTPUTS, {
      sessionOptions: { optimizedModelFilePath: written, graphOptimizationLevel: 'basic', logSeverityLevel: 3 },
    });
    const again = await ort.InferenceSession.create(written);
    expect((await again.run({ x: x() })).y!.data).toEqual(sum());
    await Promise.all([session.release(), again.release()]);
  });

  test('extra configuration, threads, arena and mode', async () => {
    const session = await createSession(ort, TWO_OUTPUTS, {
      sessionOptions: {
        extra: { session: { intra_op: { allow_spinning: '0' } } },
        intraOpNumThreads: 1,
        interOpNumThreads: 1,
        executionMode: 'parallel',
        enableCpuMemArena: false,
        enableMemPattern: false,
      },
    });
    expect((await session.run({ x: x() }, { tag: 'one', logSeverityLevel: 3 })).y!.data).toEqual(sum());
    await session.release();
    const wrong = createSession(ort, TWO_OUTPUTS, { sessionOptions: { extra: { ['x'.repeat(2000)]: '1' } } });
    await expect(wrong).rejects.toMatchObject({ code: expect.stringMatching(/INVALID_ARGUMENT|ORT_ERROR/) });
  });

  test('externalData in memory', async () => {
    const bytes = model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [externalTensor('w', [512], { location: 'w.bin', offset: '0', length: '2048' })],
      inputs: [value('x', [512])],
      outputs: [value('y', [512])],
    });
    const session = await createSession(ort, bytes, {
      sessionOptions: { externalData: [{ path: 'w.bin', data: new Uint8Array(floats(512).buffer) }] },
    });
    expect((await session.run({ x: x() })).y!.data).toEqual(sum());
    await session.release();
    const path = join(folder, 'm.onnx');
    await writeFile(path, bytes);
    await expect(createSession(ort, path)).rejects.toMatchObject({ code: 'MISSING_SHARD' });
    await expect(createSession(ort, bytes)).rejects.toMatchObject({ code: expect.any(String) });
  });
});

test('a graph inside a node runs', async () => {
  const branch = (op: string) => graph({ nodes: [node(op, ['x', 'w'], ['r'])], outputs: [value('r', [512])] });
  const bytes = model({
    nodes: [node('If', ['c'], ['y'], { then_branch: { graph: branch('Add') }, else_branch: { graph: branch('Mul') } })],
    initializers: [rawTensor('w', [512], floats(512))],
    inputs: [value('c', [1], 9), value('x', [512])],
    outputs: [value('y', [512])],
  });
  const session = await createSession(ort, bytes);
  const c = (on: number) => new ort.Tensor('bool', Uint8Array.of(on), [1]);
  expect((await session.run({ c: c(1), x: x() })).y!.data).toEqual(sum());
  expect((await session.run({ c: c(0), x: x() })).y!.data).toEqual(product());
  await session.release();
});
