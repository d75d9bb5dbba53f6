/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { checkOnnxSplit } from '../src/models/onnx/check-split.js';
import { compareOutputs } from '../src/models/onnx/compare-outputs.js';
import type { Message } from '../src/models/onnx/protobuf.js';
import { GRAPH, NODE, TENSOR } from '../src/models/onnx/schema.js';
import { splitOnnx } from '../src/models/onnx/split.js';
import {
  addModel,
  bytesOf,
  externalTensor,
  floats,
  message,
  model,
  node,
  rawTensor,
  TYPES,
  tensor,
  value,
} from './support/onnx-model.js';
import { folder, graphOf, infer, readTensors, W, write, x } from './support/split-onnx.js';

// Which weights a split lifts, of every type and wherever they are, and which stay in the graph.

describe('what is lifted', () => {
  const f16 = Uint16Array.from({ length: 512 }, (_, i) => 0x3c00 + i);
  const f8 = Uint8Array.from({ length: 1024 }, (_, i) => i % 120);
  test.each([
    ['float_data', 'F32', tensor('w', [512], TYPES.F32, { [TENSOR.floatData]: bytesOf(W) }), W],
    [
      'double_data',
      'F64',
      tensor('w', [512], TYPES.F64, { [TENSOR.doubleData]: bytesOf(Float64Array.from(W)) }),
      Float64Array.from(W),
    ],
    ['int32_data', 'F16', tensor('w', [512], TYPES.F16, { [TENSOR.int32Data]: [...f16] }), f16],
    ['int32_data', 'BF16', tensor('w', [512], TYPES.BF16, { [TENSOR.int32Data]: [...f16] }), f16],
    ['int32_data', 'F8_E4M3', tensor('w', [1024], TYPES.F8_E4M3, { [TENSOR.int32Data]: [...f8] }), f8],
    ['raw_data', 'F32', rawTensor('w', [2, 256], W), W],
  ])('%s of %s', async (_, dtype, w, expected) => {
    const path = await write(addModel(w));
    const report = await splitOnnx(path);
    const { tensors } = await readTensors(report.weights);
    expect(tensors.get('w')).toMatchObject({ dtype, shape: report.tensors[0]!.shape });
    expect(Buffer.compare(tensors.get('w')!.data, bytesOf(expected))).toBe(0);
    expect(await checkOnnxSplit(report)).toBe(expected.byteLength);
  });

  test('data already in a file of the model folder, whatever their type', async () => {
    await writeFile(
      join(folder, 'old.bin'),
      Buffer.concat([Buffer.alloc(24), bytesOf(W), bytesOf(BigInt64Array.of(7n))]),
    );
    const path = await write(
      model({
        nodes: [node('Add', ['x', 'w'], ['y']), node('Identity', ['i'], ['z'])],
        initializers: [
          externalTensor('w', [512], { location: 'old.bin', offset: '24', length: '2048' }),
          externalTensor('i', [1], { location: 'old.bin', offset: '2072' }, TYPES.I64),
        ],
        inputs: [value('x', [512])],
        outputs: [value('y', [512]), value('z', [1], TYPES.I64)],
      }),
    );
    const out = join(folder, 'out');
    await mkdir(out);
    const report = await splitOnnx(path, { out });
    expect(report.tensors.map(({ name, dtype }) => [name, dtype])).toEqual([
      ['w', 'F32'],
      ['i', 'I64'],
    ]);
    const { y, z } = await infer(report.graph, { x: x() });
    expect(y!.data).toEqual((await infer(path, { x: x() })).y!.data);
    expect(z!.data).toEqual(BigInt64Array.of(7n));
  });

  test('nothing below the floor, which is 64 KiB for what may be a shape; the report says why', async () => {
    const ids = tensor('ids', [512], TYPES.I64, { [TENSOR.rawData]: new Uint8Array(4096) });
    const path = await write(
      model({
        nodes: [
          node('Add', ['x', 'w'], ['y']),
          node('Constant', [], ['v'], { value: { tensor: rawTensor('', [512], W) } }),
        ],
        initializers: [rawTensor('w', [512], W), rawTensor('small', [255], floats(255)), ids],
        inputs: [value('x', [512])],
        outputs: [value('y', [512]), value('v', [512])],
      }),
    );
    const report = await splitOnnx(path);
    expect(report).toMatchObject({
      mode: 'external-data',
      minBytes: 1024,
      bytes: 2048,
      tensors: [{ name: 'w', byteLength: 2048, from: 'initializer' }],
    });
    expect(report.inline.map(({ name, reason }) => [name, reason])).toEqual([
      ['small', 'below the floor of 1024 bytes'],
      ['ids', 'below the floor of 65536 bytes'],
      ['v', 'is an output of its graph'],
    ]);
    expect((await splitOnnx(path, { minBytes: 0 })).tensors.map(({ name }) => name)).toEqual(['w', 'small']);
    expect((await infer(report.graph, { x: x() })).v!.data).toEqual(W);
    await expect(splitOnnx(path, { minBytes: 4096 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('nothing to lift'),
    });
    await expect(splitOnnx(path, { minBytes: -1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

test('of a Constant node with several attributes the first counts, as for ONNX Runtime', async () => {
  const W2 = floats(512, 2);
  const attributes = (first: string) => ({
    [first]: { tensor: rawTensor('', [512], W) },
    value: { tensor: rawTensor('', [512], W2) },
  });
  const constant = (first: string, output: string) => node('Constant', [], [output], attributes(first));
  const twice = node('Constant', [], ['b'], { value: { tensor: rawTensor('', [512], W) } });
  twice.addMessage(NODE.attribute, constant('value', 'b').children(NODE.attribute)[0]!);
  const path = await write(
    model({
      nodes: [
        constant('other', 'a'),
        twice,
        node('Add', ['x', 'a'], ['t']),
        node('Add', ['t', 'b'], ['u']),
        node('Add', ['u', 'w'], ['y']),
      ],
      initializers: [rawTensor('w', [512], W)],
      inputs: [value('x', [512])],
      outputs: [value('y', [512])],
    }),
  );
  const report = await splitOnnx(path);
  expect(report.tensors.map(({ name }) => name)).toEqual(['w', 'b']);
  expect((await infer(report.graph, { x: x() })).y!.data).toEqual((await infer(path, { x: x() })).y!.data);
});

test.each([
  ['a NUL', 'a\0b'],
  ['invalid UTF-8', Uint8Array.of(0x77, 0xff)],
])('a weight whose name has %s stays in the graph, which runs', async (_, name) => {
  const add = message({ [NODE.input]: ['t', name], [NODE.output]: 'y', [NODE.opType]: 'Add' });
  const path = await write(
    model({
      nodes: [node('Add', ['x', 'w'], ['t']), add],
      initializers: [rawTensor('w', [512], W), tensor('', [512], TYPES.F32, { 8: name, 9: bytesOf(W) })],
      inputs: [value('x', [512])],
      outputs: [value('y', [512])],
    }),
  );
  for (const asInputs of [false, true]) {
    const report = await splitOnnx(path, { asInputs });
    expect(report.tensors.map((lifted) => lifted.name)).toEqual(['w']);
    expect(report.inline.map(({ reason }) => reason)).toEqual(['has a name with bytes that are no text']);
    const feeds = { x: x(), ...(asInputs && { w: new ort.Tensor('float32', W, [512]) }) };
    expect((await infer(report.graph, feeds)).y!.data).toEqual((await infer(path, { x: x() })).y!.data);
  }
});

describe('weights of integers', () => {
  const plain = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 7) % 251);
  const identity = (w: Message, type: number, shape: number[]) =>
    model({
      nodes: [node('Identity', ['w'], ['y'])],
      initializers: [w],
      outputs: [value('y', shape, type)],
      opsets: { '': 21 },
    });

  test.each([
    ['I8', 3, 65536],
    ['U8', 2, 65536],
    ['I16', 5, 32768],
    ['U16', 4, 32768],
    ['I32', 6, 16384],
    ['U32', 12, 16384],
    ['I64', TYPES.I64, 8192],
    ['U64', 13, 8192],
    ['BOOL', TYPES.BOOL, 65536],
  ])('%s from 64 KiB on are lifted: no shape is as large', async (dtype, type, count) => {
    const raw = (elements: number) =>
      tensor('w', [elements], type, { [TENSOR.rawData]: plain((65536 / count) * elements) });
    const report = await splitOnnx(await write(identity(raw(count), type, [count])));
    expect(report.tensors).toMatchObject([{ name: 'w', dtype, shape: [count], byteLength: 65536 }]);
    const { tensors } = await readTensors(report.weights);
    expect(Buffer.compare(tensors.get('w')!.data, plain(65536))).toBe(0);
    expect(await checkOnnxSplit(report)).toBe(65536);
    const smaller = await write(identity(raw(count - 1), type, [count - 1]), 'smaller.onnx');
    await expect(splitOnnx(smaller)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  const negative = Int32Array.from({ length: 16384 }, (_, i) => (i % 2 ? -1 : 1) * (i * 131071));
  const long = BigInt64Array.from({ length: 8192 }, (_, i) => (i % 2 ? -1n : 1n) * BigInt(i) * 2n ** 50n);
  test.each([
    ['int32_data of I32', 6, 16384, { [TENSOR.int32Data]: [...negative] }, bytesOf(negative)],
    ['int64_data of I64', 7, 8192, { [TENSOR.int64Data]: Array.from(long, Number) }, bytesOf(long)],
    ['int32_data of I8', 3, 65536, { [TENSOR.int32Data]: [...new Int8Array(plain(65536).buffer)] }, plain(65536)],
  ] as const)('in %s', async (_, type, count, data, expected) => {
    const report = await splitOnnx(await write(identity(tensor('w', [count], type, data as never), type, [count])));
    const { tensors } = await readTensors(report.weights);
    expect(Buffer.compare(tensors.get('w')!.data, expected)).toBe(0);
  });

  test.each([
    ['INT4', 22, 131072, 'w.int4', [65536]],
    ['UINT4', 21, 131073, 'w.uint4', [65537]],
  ])('%s are packed as U8, under a name that says so', async (_, type, count, name, shape) => {
    const data = plain(Math.ceil(count / 2));
    const bytes = model(
      {
        nodes: [node('DequantizeLinear', ['w', 's'], ['y'])],
        initializers: [
          tensor('w', [count], type, { [TENSOR.rawData]: data }),
          rawTensor('s', [], Float32Array.of(0.5)),
        ],
        outputs: [value('y', [count])],
        opsets: { '': 21 },
      },
      10,
    );
    const path = await write(bytes);
    const report = await splitOnnx(path);
    expect(report.tensors).toMatchObject([{ name, modelName: 'w', dtype: 'U8', shape: [count] }]);
    const { metadata, tensors } = await readTensors(report.weights);
    expect(tensors.get(name)).toMatchObject({ dtype: 'U8', shape });
    expect(Buffer.compare(tensors.get(name)!.data, data)).toBe(0);
    expect(JSON.parse(metadata.packed!)).toEqual({ [name]: { type: name.slice(2), shape: [count] } });
    expect(metadata.renamed).toBeUndefined();
    expect(await checkOnnxSplit(report)).toBe(data.length);
    expect((await infer(report.graph, {})).y!.data).toEqual((await infer(path, {})).y!.data);
  });
});

describe('external data', () => {
  const place = (offset: number, length: number) => ({
    location: 'old.bin',
    offset: `${offset}`,
    length: `${length}`,
  });
  const VALUES = floats(2048, 1e-3);
  beforeEach(() => writeFile(join(folder, 'old.bin'), bytesOf(VALUES)));
  /** y = x · a, z = b, over the same bytes. */
  const two = (shape: number[]) =>
    model({
      nodes: [node('MatMul', ['x', 'a'], ['y']), node('Identity', ['b'], ['z'])],
      initializers: [externalTensor('a', [32, 32], place(2048, 4096)), externalTensor('b', shape, place(2048, 4096))],
      inputs: [value('x', [1, 32])],
      outputs: [value('y', [1, 32]), value('z', shape)],
    });

  test.each([
    ['one shape', [32, 32], ['a']],
    ['different shapes', [1024], ['a', 'b']], // an input has one shape
  ])('two initializers over the same bytes, of %s, are written once', async (_, shape, inputs) => {
    const feeds = { x: new ort.Tensor('float32', floats(32), [1, 32]) };
    const path = await write(two(shape));
    const expected = await infer(path, feeds);
    const out = join(folder, 'out');
    const report = await splitOnnx(path, { out });
    expect(report).toMatchObject({ bytes: 4096, tensors: [{ modelName: 'a' }, { modelName: 'b' }] });
    expect(report.tensors.map(({ name }) => name)).toEqual(['a', 'a']);
    expect([...(await readTensors(report.weights)).tensors.keys()]).toEqual(['a']);
    expect(await checkOnnxSplit(report)).toBe(8192);
    expect(compareOutputs(await infer(report.graph, feeds), expected).largest).toBe(0);

    const taking = await splitOnnx(path, { out, asInputs: true });
    expect([...(await readTensors(taking.weights)).tensors.keys()]).toEqual(inputs);
    expect(await checkOnnxSplit(taking)).toBe(8192);
    const weight = (name: string) => {
      const dims = name === 'a' ? [32, 32] : shape;
      return [name, new ort.Tensor('float32', VALUES.slice(512, 1536), dims)];
    };
    const found = await infer(taking.graph, { ...feeds, ...Object.fromEntries(inputs.map(weight)) });
    expect(compareOutputs(found, expected)).toMatchObject({ withinTolerance: true });
  });

  test('an initializer of 0 elements stays in the graph, which onnxruntime-node can open', async () => {
    const path = await write(
      model({
        nodes: [message({ [NODE.input]: ['x', 'w', 'none'], [NODE.output]: 'y', [NODE.opType]: 'Sum' })],
        initializers: [
          externalTensor('w', [512], place(0, 2048)),
          externalTensor('none', [0], { location: 'not there', offset: '4096', length: '0' }),
        ],
        inputs: [value('x', [512])],
        outputs: [value('y', [512])],
      }),
    );
    const report = await splitOnnx(path, { out: join(folder, 'out'), minBytes: 0 });
    expect(report.inline).toMatchObject([{ name: 'none', reason: 'has no elements' }]);
    expect((await readTensors(report.weights)).tensors.has('none')).toBe(false);
    const [none] = (await graphOf(report.graph))
      .children(GRAPH.initializer)
      .filter((t) => t.string(TENSOR.name) === 'none');
    expect(none!.has(TENSOR.externalData)).toBe(false);
    expect(await checkOnnxSplit(report)).toBe(2048);
  });
});
