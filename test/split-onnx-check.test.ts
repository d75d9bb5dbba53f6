/** @jest-environment ./test/support/native-arrays-environment.js */
import { rm } from 'node:fs/promises';
import * as ort from 'onnxruntime-node';
import { compareRuns } from '../src/cli/compare-onnx-runs.js';
import { compareOutputs } from '../src/models/onnx/compare-outputs.js';
import { randomElements } from '../src/models/onnx/random-elements.js';
import { TENSOR_TYPE, TYPE, VALUE_INFO } from '../src/models/onnx/schema.js';
import { splitOnnx } from '../src/models/onnx/split.js';
import { bytesOf, floats, message, model, node, rawTensor, TYPES, tensor, value } from './support/onnx-model.js';
import { blank, write } from './support/split-onnx.js';
import { collectedMetrics } from './support/tensor-files.js';

// `split-onnx --check` runs models of every type of input and weight that a session of this package can be fed.

afterEach(async () => expect((await collectedMetrics()).hostBytes).toBe(0));

const W = rawTensor('w', [512], floats(512));
const F = { to: { int: 1 } };
const recent = { opsets: { '': 21 } };
/** Types that onnxruntime-node has no name for: it opens no graph that takes them. */
const NAMELESS = /^(bfloat16|float8)/;

test.each([
  ['float16', TYPES.F16],
  ['float64', TYPES.F64],
  ['bfloat16', TYPES.BF16],
  ['float8e4m3fn', TYPES.F8_E4M3],
  ['float8e4m3fnuz', 18],
  ['float8e5m2', 19],
  ['float8e5m2fnuz', 20],
  ['uint8', 2],
  ['int8', 3],
  ['uint16', 4],
  ['int16', 5],
  ['int32', 6],
  ['int64', TYPES.I64],
  ['bool', TYPES.BOOL],
  ['uint32', 12],
  ['uint64', 13],
  ['uint4', 21],
  ['int4', 22],
])('a model with an input of type %s is run', async (name, type) => {
  const path = await write(
    model(
      {
        nodes: [node('Cast', ['x'], ['f'], F), node('Add', ['f', 'w'], ['y'])],
        initializers: [W],
        inputs: [value('x', [512], type)],
        outputs: [value('y', [512])],
        ...recent,
      },
      10,
    ),
  );
  const report = await splitOnnx(path);
  expect(await compareRuns(ort, report)).toEqual({
    largest: 0,
    withinTolerance: true,
    inputs: { x: [512] },
    notCompared: [],
    needsCreateSession: NAMELESS.test(name) ? `"x" is ${name}` : null,
  });
  await blank(report.weights);
  expect(await compareRuns(ort, report)).toMatchObject({ withinTolerance: false });
});

test('a model with texts is run', async () => {
  const path = await write(
    model({
      nodes: [node('Identity', ['s'], ['t']), node('Add', ['x', 'w'], ['y'])],
      initializers: [W],
      inputs: [value('s', [2], 8), value('x', [512])],
      outputs: [value('t', [2], 8), value('y', [512])],
    }),
  );
  expect(await compareRuns(ort, await splitOnnx(path))).toMatchObject({ largest: 0, inputs: { s: [2], x: [512] } });
});

test('a dimension that the model leaves open is 1, or what the caller says', async () => {
  const shape = ['batch', 2, '', 512];
  const path = await write(
    model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [W],
      inputs: [value('x', shape)],
      outputs: [value('y', shape)],
    }),
  );
  const report = await splitOnnx(path);
  expect(await compareRuns(ort, report)).toMatchObject({ withinTolerance: true, inputs: { x: [1, 2, 1, 512] } });
  const x = [3, 2, 5, 512];
  expect(await compareRuns(ort, report, { x })).toMatchObject({ withinTolerance: true, inputs: { x } });
  await expect(compareRuns(ort, report, { z: x })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

test.each(['__proto__', 'constructor', '__metadata__'])('inputs and weights may be called %s', async (name) => {
  const parts = (x: string, w: string) => ({
    nodes: [node('Add', [x, w], ['y'])],
    initializers: [rawTensor(w, [512], floats(512))],
    inputs: [value(x, ['open', 512])],
    outputs: [value('y', ['open', 512])],
  });
  for (const graph of [parts('x', name), parts(name, 'w')]) {
    const report = await splitOnnx(await write(model(graph)), { asInputs: true });
    expect(await compareRuns(ort, report)).toMatchObject({ withinTolerance: true });
  }
});

test('an input that is no tensor is refused by name', async () => {
  const ofTensor = message({ [TYPE.tensor]: message({ [TENSOR_TYPE.elemType]: TYPES.F32 }) });
  const sequence = message({ [VALUE_INFO.name]: 's', [VALUE_INFO.type]: message({ 4: message({ 1: ofTensor }) }) });
  const path = await write(
    model({
      nodes: [node('Add', ['x', 'w'], ['y']), node('SequenceLength', ['s'], ['n'])],
      initializers: [W],
      inputs: [value('x', [512]), sequence],
      outputs: [value('y', [512])],
    }),
  );
  const report = await splitOnnx(path);
  await expect(compareRuns(ort, report)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', tensor: 's' });
});

test.each([
  ['F16', TYPES.F16, 512, 16],
  ['BF16', TYPES.BF16, 512, 16],
  ['F8_E4M3', TYPES.F8_E4M3, 1024, 8],
  ['I8', 3, 65536, 8],
  ['I64', TYPES.I64, 8192, 64],
  ['INT4', 22, 131072, 4],
])('weights of %s that became inputs are fed', async (_, type, count, bits) => {
  const w = randomElements(type, count)!;
  expect(w.length).toBe((count * bits) / 8);
  const path = await write(
    model(
      {
        nodes: [node('Cast', ['w'], ['f'], F), node('Mul', ['x', 'f'], ['y'])],
        initializers: [tensor('w', [count], type, { 9: w })],
        inputs: [value('x', [count])],
        outputs: [value('y', [count])],
        ...recent,
      },
      10,
    ),
  );
  const report = await splitOnnx(path, { asInputs: true });
  expect(await compareRuns(ort, report)).toMatchObject({ withinTolerance: true });
  await blank(report.weights);
  expect(await compareRuns(ort, report)).toMatchObject({ withinTolerance: false });
});

test('an output that JavaScript has no type for is named, and the others are compared', async () => {
  const parts = {
    nodes: [node('Add', ['x', 'w'], ['y']), node('Cast', ['y'], ['z'], { to: { int: 16 } })],
    initializers: [W],
    inputs: [value('x', [512])],
  };
  const z = value('z', [512], TYPES.BF16);
  const path = await write(model({ ...parts, outputs: [value('y', [512]), z] }));
  const report = await splitOnnx(path);
  expect(await compareRuns(ort, report)).toMatchObject({ withinTolerance: true, notCompared: ['z'] });
  await write(model({ ...parts, outputs: [z] }));
  await expect(compareRuns(ort, await splitOnnx(path))).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE' });
});

test('a graph that onnxruntime-node cannot open is no success', async () => {
  const path = await write(
    model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [W],
      inputs: [value('x', [512])],
      outputs: [value('y', [512])],
    }),
  );
  const report = await splitOnnx(path);
  await rm(report.weights);
  await expect(compareRuns(ort, report)).rejects.toThrow();
});

describe('the tolerance', () => {
  const halves = (...bits: number[]) => ({ y: { type: 'float16', data: Uint16Array.from(bits) } });
  test('of float16 is that of 16 bits: its elements are numbers, not bits', () => {
    const one = 0x3c00;
    expect(compareOutputs(halves(one + 4), halves(one))).toMatchObject({ largest: 4 / 1024, withinTolerance: true });
    expect(compareOutputs(halves(one + 32), halves(one))).toMatchObject({ withinTolerance: false });
    expect(compareOutputs(halves(0x8000), halves(0))).toMatchObject({ largest: 0 });
    expect(compareOutputs(halves(0x7e00), halves(0x7e01))).toMatchObject({ largest: 0, withinTolerance: true });
    expect(compareOutputs(halves(0x7c00), halves(one))).toMatchObject({ withinTolerance: false });
    expect(compareOutputs(halves(0xbc00), halves(one))).toMatchObject({ largest: 2, withinTolerance: false });
  });

  const of = (type: string, data: ArrayLike<number | bigint>) => ({ y: { type, data } });
  test.each([
    ['int8', [1], [2], true],
    ['uint8', [1], [3], false],
    ['int32', [100_001], [100_000], false],
    ['int64', [1n], [2n], false],
    ['bool', [0], [1], false],
    ['float32', [1.001], [1], false],
  ] as const)('of %s: %j and %j', (type, a, b, withinTolerance) => {
    expect(compareOutputs(of(type, a), of(type, b))).toMatchObject({ withinTolerance });
  });

  test('of float32 is coarser in models that compute with 16 and 8 bits; that of integers is not', () => {
    const [a, b] = [of('float32', [1.005]), of('float32', [1])];
    expect(compareOutputs(a, b, ['F32'])).toMatchObject({ withinTolerance: false });
    expect(compareOutputs(a, b, ['F32', 'F16'])).toMatchObject({ withinTolerance: true });
    expect(compareOutputs(of('float32', [1.04]), b, ['F16'])).toMatchObject({ withinTolerance: false });
    expect(compareOutputs(of('float32', [1.04]), b, ['BF16'])).toMatchObject({ withinTolerance: true });
    const apart = compareOutputs(of('int32', [1000]), of('int32', [1001]), ['BF16']);
    expect(apart).toMatchObject({ withinTolerance: false });
  });
});

test('random elements are what their type says, and the same each time', () => {
  const bf16 = new Uint16Array(randomElements(16, 1000)!.buffer);
  const single = new Float32Array(Uint32Array.from(bf16, (bits) => bits << 16).buffer);
  expect(single.every((v) => Math.abs(v) < 1)).toBe(true);
  expect(new Set(single).size).toBeGreaterThan(100);
  expect(Buffer.compare(bytesOf(bf16), randomElements(16, 1000)!)).toBe(0);
  expect(randomElements(22, 3)!.length).toBe(2);
  expect(randomElements(8, 1)).toBeUndefined();
  expect(new Set(randomElements(18, 1000)!).has(0x80)).toBe(false); // a NaN there
});
