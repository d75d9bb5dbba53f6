/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { checkOnnxSplit } from '../src/models/onnx/check-split.js';
import { compareOutputs } from '../src/models/onnx/compare-outputs.js';
import { Message } from '../src/models/onnx/protobuf.js';
import { GRAPH, MODEL, NODE, TENSOR, VALUE_INFO } from '../src/models/onnx/schema.js';
import { splitOnnx } from '../src/models/onnx/split.js';
import {
  addModel,
  bytesOf,
  externalTensor,
  floats,
  graph,
  message,
  model,
  node,
  rawTensor,
  TYPES,
  tensor,
  value,
} from './support/onnx-model.js';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'split-onnx-'));
});
afterEach(() => rm(folder, { recursive: true }));

const write = async (bytes: Uint8Array, name = 'm.onnx') => {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
};

async function infer(file: string, feeds: Record<string, ort.Tensor>) {
  const session = await ort.InferenceSession.create(file, { logSeverityLevel: 3 });
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

const W = floats(512);
const x = () => new ort.Tensor('float32', floats(512, 0.5), [512]);
const graphOf = async (path: string) => new Message(await readFile(path), path).child(MODEL.graph)!;

async function readTensors(path: string) {
  const bytes = await readFile(path);
  const start = 8 + Number(bytes.readBigUInt64LE());
  const { __metadata__, ...entries } = JSON.parse(bytes.toString('utf8', 8, start));
  const tensors = Object.entries(
    entries as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>,
  ).map(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [begin, end],
      },
    ]) => [name, { dtype, shape, data: bytes.subarray(start + begin, start + end) }] as const,
  );
  return { metadata: __metadata__ as Record<string, string>, tensors: new Map(tensors) };
}

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

test('a model in ORT format is refused, and the error says what to split instead', async () => {
  const path = await write(addModel(rawTensor('w', [512], W)));
  const optimized = join(folder, 'm.ort');
  const session = await ort.InferenceSession.create(path, {
    optimizedModelFilePath: optimized,
    extra: { session: { save_model_format: 'ORT' } },
  });
  await session.release();
  await expect(splitOnnx(optimized)).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    path: optimized,
    message: expect.stringMatching(/ORT format.*\.onnx that it was made from/),
  });
});

describe('the new graph', () => {
  test('keeps every record that is not edited, unknown fields included', async () => {
    const unknown = (id: number) => ({ [id]: `unknown ${id}` });
    const w = message({
      [TENSOR.dims]: 512,
      [TENSOR.dataType]: 1,
      [TENSOR.name]: 'w',
      ...unknown(900),
      [TENSOR.rawData]: bytesOf(W),
    });
    const add = message({ [NODE.input]: ['x', 'w'], [NODE.output]: 'y', [NODE.opType]: 'Add', ...unknown(901) });
    const parts = graph({ nodes: [add], initializers: [w], inputs: [value('x', [512])], outputs: [value('y', [512])] });
    parts.addBytes(902, 'unknown 902');
    // Field 903 as a fixed32 and 904 as an old-style group: records that no ONNX writer makes.
    const odd = Buffer.from([(903 << 3) | 5, 0, 1, 2, 3, 4, (904 << 3) | 3, 0, (904 << 3) | 4, 0]);
    odd[0] = ((903 << 3) & 127) | 128 | 5;
    odd[1] = (903 << 3) >> 7;
    odd[6] = ((904 << 3) & 127) | 128 | 3;
    odd[7] = (904 << 3) >> 7;
    odd[8] = ((904 << 3) & 127) | 128 | 4;
    odd[9] = (904 << 3) >> 7;
    const head = message({ [MODEL.irVersion]: 8, 8: message({ 2: 13 }) });
    head.addMessage(MODEL.graph, parts);
    const path = await write(Buffer.concat([head.encode(), odd]));

    for (const asInputs of [false, true]) {
      const report = await splitOnnx(path, { asInputs });
      const bytes = await readFile(report.graph);
      const after = new Message(bytes, report.graph).child(MODEL.graph)!;
      expect(bytes.subarray(-odd.length)).toEqual(odd);
      expect(after.string(902)).toBe('unknown 902');
      expect(Buffer.compare(after.bytes(GRAPH.node)[0]!, add.encode())).toBe(0);
      if (!asInputs) expect(after.children(GRAPH.initializer)[0]!.string(900)).toBe('unknown 900');
      else expect(after.has(GRAPH.initializer)).toBe(false);
    }
    expect(await readFile(path)).toEqual(Buffer.concat([head.encode(), odd]));
  });

  test.each([false, true])(
    'runs at IR version 3, where initializers are inputs too (as inputs: %s)',
    async (asInputs) => {
      const path = await write(addModel(rawTensor('w', [512], W), 3, [value('w', [512])]));
      const report = await splitOnnx(path, { asInputs });
      const feeds: Record<string, ort.Tensor> = { x: x() };
      if (asInputs) feeds.w = new ort.Tensor('float32', W, [512]);
      expect((await infer(report.graph, feeds)).y!.data).toEqual((await infer(path, { x: x() })).y!.data);
    },
  );

  test('of IR version 3 moves to 4, where Constants can become initializers and inputs no constants', async () => {
    const path = await write(
      model(
        {
          nodes: [
            node('Constant', [], ['w'], { value: { tensor: rawTensor('', [512], W) } }),
            node('Add', ['x', 'w'], ['sum']),
            node('Add', ['sum', 'small'], ['y']),
          ],
          initializers: [rawTensor('small', [1], floats(1))],
          inputs: [value('x', [512]), value('small', [1])],
          outputs: [value('y', [512])],
        },
        3,
      ),
    );
    const { graph: split } = await splitOnnx(path);
    expect(new Message(await readFile(split)).integer(MODEL.irVersion)).toBe(4);
    const after = await graphOf(split);
    expect(after.children(GRAPH.input).map((input) => input.string(VALUE_INFO.name))).toEqual(['x']);
    expect(after.children(GRAPH.initializer).map((tensor) => tensor.string(TENSOR.name))).toEqual(['small', 'w']);
    expect((await infer(split, { x: x() })).y!.data).toEqual((await infer(path, { x: x() })).y!.data);
  });

  test('requires a weight that callers could override before', async () => {
    const path = await write(addModel(rawTensor('w', [512], W), 8, [value('w', [512])]));
    const { graph: split } = await splitOnnx(path, { asInputs: true });
    const inputs = (await graphOf(split)).children(GRAPH.input).map((input) => input.string(VALUE_INFO.name));
    expect(inputs).toEqual(['x', 'w']);
    const w = new ort.Tensor('float32', W, [512]);
    expect((await infer(split, { x: x(), w })).y!.data).toEqual((await infer(path, { x: x() })).y!.data);
  });
});

describe('weights of inner graphs that share a name', () => {
  /**
   * `y = If(c) then x + w else x + w`, with another `w` in each branch, and the else branch's used one level deeper.
   */
  const branchy = () => {
    const w = (scale: number) =>
      node('Constant', [], ['w'], { value: { tensor: rawTensor('', [512], floats(512, scale)) } });
    const add = (out: string) => node('Add', ['x', 'w'], [out]);
    const inside = (out: string) => ({ graph: graph({ nodes: [add(out)], outputs: [value(out, [512])] }) });
    const branch = (scale: number, body: Message, out: string) => ({
      graph: graph({ nodes: [w(scale), body], outputs: [value(out, [512])] }),
    });
    const deeper = node('If', ['c'], ['e'], { then_branch: inside('e1'), else_branch: inside('e2') });
    return model({
      nodes: [
        node('If', ['c'], ['y'], { then_branch: branch(1, add('t'), 't'), else_branch: branch(-3, deeper, 'e') }),
      ],
      inputs: [value('x', [512]), value('c', [], TYPES.BOOL)],
      outputs: [value('y', [512])],
    });
  };

  test.each([false, true])('get names of their own (as inputs: %s)', async (asInputs) => {
    const path = await write(branchy());
    const report = await splitOnnx(path, { asInputs });
    expect(report.tensors.map(({ name, modelName, graph }) => [name, modelName, graph])).toEqual([
      ['w_1', 'w', '/If.then_branch'],
      ['w_2', 'w', '/If.else_branch'],
    ]);
    const { metadata, tensors } = await readTensors(report.weights);
    expect(JSON.parse(metadata.renamed!)).toEqual({
      w_1: { graph: '/If.then_branch', name: 'w' },
      w_2: { graph: '/If.else_branch', name: 'w' },
    });
    const weights = [...tensors].map(([name, { data }]) => [
      name,
      new ort.Tensor('float32', new Float32Array(Uint8Array.from(data).buffer), [512]),
    ]);
    for (const c of [0, 1]) {
      const feeds = { x: x(), c: new ort.Tensor('bool', Uint8Array.of(c), []) };
      const found = await infer(report.graph, asInputs ? { ...feeds, ...Object.fromEntries(weights) } : feeds);
      expect(found.y!.data).toEqual((await infer(path, feeds)).y!.data);
      expect(found.y!.data).toEqual(floats(512, 0.5).map((v, i) => v + floats(512, c ? 1 : -3)[i]!));
    }
    expect(await checkOnnxSplit(report)).toBe(4096);
  });
});

describe('files', () => {
  test('go where out says, and a second run replaces them', async () => {
    const path = await write(addModel(rawTensor('w', [512], W)));
    const out = join(folder, 'out');
    await mkdir(out);
    for (const asInputs of [false, true]) await splitOnnx(path, { out, asInputs });
    expect((await readdir(out)).sort()).toEqual(['m.safetensors', 'm.split.onnx']);
    expect(await readdir(folder)).toEqual(expect.arrayContaining(['m.onnx', 'out']));
    const below = join(path, 'below'); // a file
    await expect(splitOnnx(path, { out: below })).rejects.toMatchObject({ code: 'IO_ERROR', path: below });
  });

  test('a .safetensors file of another origin is never overwritten', async () => {
    const path = await write(addModel(rawTensor('w', [512], W)));
    const theirs = Buffer.concat([Buffer.of(2, 0, 0, 0, 0, 0, 0, 0), Buffer.from('{}')]);
    await writeFile(join(folder, 'm.safetensors'), theirs);
    await expect(splitOnnx(path)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      path: join(folder, 'm.safetensors'),
    });
    expect(await readFile(join(folder, 'm.safetensors'))).toEqual(theirs);
  });

  test("nor is the file that holds the model's own weights", async () => {
    const first = await splitOnnx(await write(addModel(rawTensor('w', [512], W))));
    const renamed = await write(await readFile(first.graph), 'm.onnx');
    await expect(splitOnnx(renamed)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('weights of the model itself'),
    });
    const out = join(folder, 'out');
    await mkdir(out);
    const again = await splitOnnx(renamed, { out });
    expect((await infer(again.graph, { x: x() })).y!.data).toEqual((await infer(renamed, { x: x() })).y!.data);
  });
});
