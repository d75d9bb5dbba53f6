import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { safetensorsHandler } from '../../adapters/tfjs/index.js';
import type { WeightSpec } from '../../src/models/tfjs/model-json.js';
import { splitTfjs } from '../../src/models/tfjs/split.js';
import { collectedMetrics, NOTHING_HELD, testFolder, writeTensors } from '../support/tensor-files.js';
import { writeGraphModel } from '../support/tf-models.js';

/** safetensorsHandler as tf's own loaders use it; their outputs are compared in tfjs-models.test.ts. */
const folder = testFolder();

beforeAll(async () => {
  jest.spyOn(console, 'warn').mockImplementation(() => {});
  await tf.setBackend('cpu');
});
afterEach(async () => {
  expect(tf.memory()).toMatchObject({ numTensors: 0, numDataBuffers: 0 });
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});

/** A graph model of constants alone: its weights are its outputs. */
function constants(specs: readonly WeightSpec[]): object {
  const types = {
    float32: 'DT_FLOAT',
    int32: 'DT_INT32',
    bool: 'DT_BOOL',
    complex64: 'DT_COMPLEX64',
    string: 'DT_STRING',
  };
  const node = specs.flatMap(({ name, dtype }) => [
    { name, op: 'Const', attr: { dtype: { type: types[dtype] } } },
    { name: `${name}/out`, op: 'Identity', input: [name], attr: { T: { type: types[dtype] } } },
  ]);
  return {
    format: 'graph-model',
    modelTopology: { node, versions: { producer: 1 } },
    weightsManifest: [{ paths: [], weights: specs }],
  };
}

/** Every weight that tf.loadGraphModel makes of a handler. */
async function weightsOf(handler: ReturnType<typeof safetensorsHandler>): Promise<Record<string, unknown>> {
  const model = await tf.loadGraphModel(handler);
  const told = Object.entries(model.weights).map(([name, [t]]) => [name, [t!.dtype, t!.shape, [...t!.dataSync()]]]);
  model.dispose();
  return Object.fromEntries(told);
}

describe.each([
  ['as a stream', true],
  ['in one piece', false],
])('%s', (_, stream) => {
  test('weights of every dtype, under other names, one stored tensor for two of them', async () => {
    const files = await writeTensors(join(folder, 'dtypes.safetensors'), {
      'm.f': { dtype: 'F32', shape: [2, 1], data: Float32Array.of(1.5, -2) },
      'm.h': { dtype: 'F16', shape: [2], data: Uint16Array.of(0x3c00, 0xc100) },
      'm.bf': { dtype: 'BF16', shape: [1], data: Uint16Array.of(0xc020) },
      'm.f8': { dtype: 'F8_E4M3', shape: [1], data: Uint8Array.of(0x7e) },
      'm.i': { dtype: 'I64', shape: [1], data: BigInt64Array.of(-5n) },
      'm.b': { dtype: 'BOOL', shape: [2], data: Uint8Array.of(1, 0) },
      'm.q': { dtype: 'U8', shape: [2], data: Uint8Array.of(0, 10) },
      'm.none': { dtype: 'F32', shape: [0, 4], data: new Float32Array(0) },
      'm.unused': { dtype: 'F4', shape: [2], data: new Uint8Array(1) },
    });
    const specs: WeightSpec[] = [
      { name: 'q', shape: [2], dtype: 'float32', quantization: { dtype: 'uint8', scale: 0.5, min: -1 } },
      { name: 'i', shape: [1], dtype: 'int32' },
      { name: 'f', shape: [2, 1], dtype: 'float32' },
      { name: 'twin', shape: [2, 1], dtype: 'float32' },
      { name: 'bf', shape: [1], dtype: 'float32' },
      { name: 'f8', shape: [1], dtype: 'float32' },
      { name: 'none', shape: [0, 4], dtype: 'float32' },
      { name: 'h', shape: [2], dtype: 'float32' },
      { name: 'b', shape: [2], dtype: 'bool' },
    ];
    const names = (name: string) => (name === 'twin' ? 'm.f' : `m.${name}`);
    expect(await weightsOf(safetensorsHandler(files, { model: constants(specs), names, stream }))).toEqual({
      q: ['float32', [2], [-1, 4]],
      i: ['int32', [1], [-5]],
      f: ['float32', [2, 1], [1.5, -2]],
      twin: ['float32', [2, 1], [1.5, -2]],
      bf: ['float32', [1], [-2.5]],
      f8: ['float32', [1], [448]],
      none: ['float32', [0, 4], []],
      h: ['float32', [2], [1, -2.5]],
      b: ['bool', [2], [1, 0]],
    });
  });

  test('a file whose header lists tensors in another order than their bytes', async () => {
    const names = Array.from({ length: 40 }, (_, i) => `w${i}`);
    const entries = names.map((name, i) => [name, { dtype: 'F32', shape: [1], data_offsets: [4 * i, 4 * i + 4] }]);
    const header = Buffer.from(JSON.stringify(Object.fromEntries(entries.reverse())));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    const path = join(folder, 'order.safetensors');
    writeFileSync(path, Buffer.concat([length, header, Buffer.from(Float32Array.from(names, (_, i) => i).buffer)]));
    const specs = names.map((name) => ({ name, shape: [1], dtype: 'float32' as const }));
    expect(await weightsOf(safetensorsHandler(path, { model: constants(specs), stream }))).toEqual(
      Object.fromEntries(names.map((name, i) => [name, ['float32', [1], [i]]])),
    );
  });

  test('several files, given in any order', async () => {
    const one = (i: number) =>
      writeTensors(join(folder, `several${i}.safetensors`), {
        [`w${i}`]: { dtype: 'F32', shape: [1], data: Float32Array.of(i) },
      });
    const files = [await one(3), await one(1), await one(2)];
    const specs = [1, 2, 3].map((i) => ({ name: `w${i}`, shape: [1], dtype: 'float32' as const }));
    expect(await weightsOf(safetensorsHandler(files, { model: constants(specs), stream }))).toEqual({
      w1: ['float32', [1], [1]],
      w2: ['float32', [1], [2]],
      w3: ['float32', [1], [3]],
    });
  });

  test.each([
    ['a weight that is missing', { name: 'x', shape: [1], dtype: 'float32' }, 'UNKNOWN_TENSOR'],
    ['another shape', { name: 'w', shape: [2], dtype: 'float32' }, 'TENSOR_INVALID_INFO'],
    ['another dtype', { name: 'w', shape: [1], dtype: 'int32' }, 'UNSUPPORTED_DTYPE'],
  ] as const)('%s rejects, typed', async (_, spec, code) => {
    const files = await writeTensors(join(folder, 'wrong.safetensors'), {
      w: { dtype: 'F32', shape: [1], data: Float32Array.of(1) },
    });
    const handler = safetensorsHandler(files, { model: constants([spec]), stream });
    await expect(tf.loadGraphModel(handler)).rejects.toMatchObject({ code });
  });
});

test('a stream that was read to its last weight has ended and holds nothing', async () => {
  const files = await writeTensors(join(folder, 'ends.safetensors'), {
    a: { dtype: 'F32', shape: [1], data: Float32Array.of(1) },
    b: { dtype: 'F32', shape: [1], data: Float32Array.of(2) },
  });
  const specs = ['a', 'b'].map((name) => ({ name, shape: [1], dtype: 'float32' as const }));
  const { getWeightStream } = await safetensorsHandler(files, { model: constants(specs) }).load();
  const reader = getWeightStream().getReader();
  expect((await reader.read()).value.byteLength).toBe(4);
  expect((await reader.read()).value.byteLength).toBe(4);
  // TensorFlow.js reads no further.
  await reader.closed;

  const cancelled = getWeightStream();
  await cancelled.cancel();
  const half = getWeightStream().getReader();
  await half.read();
  await half.cancel();
});

test('the model.json is found beside the files, split-tfjs’ first', async () => {
  const path = writeGraphModel(join(folder, 'beside'));
  const out = join(folder, 'elsewhere');
  const whole = await splitTfjs(path, { out });
  const cut = await splitTfjs(path, { out: join(folder, 'cut'), maxShardBytes: 20 });
  expect(cut.files.length).toBeGreaterThan(1);
  const expected = await weightsOf(safetensorsHandler(whole.weights, { model: whole.graph }));
  for (const files of [whole.weights, cut.weights, cut.files]) {
    expect(await weightsOf(safetensorsHandler(files))).toEqual(expected);
  }
});

test('what is no list of files is refused at once', () => {
  for (const wrong of [undefined, 7, {}, null]) {
    expect(() => safetensorsHandler(wrong as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  }
});

test('a misspelled option is named at once', () => {
  expect(() => safetensorsHandler('x', { steam: true } as never)).toThrow(/no option "steam"; did you mean "stream"/);
  expect(() => safetensorsHandler('x', { stream: 1 } as never)).toThrow(/stream: expected a boolean/);
});

test('an empty list, and a model that is not there, reject', async () => {
  await expect(safetensorsHandler([]).load()).rejects.toMatchObject({ code: 'IO_ERROR' });
  await expect(safetensorsHandler(join(folder, 'no', 'such.safetensors')).load()).rejects.toMatchObject({
    code: 'IO_ERROR',
  });
});
