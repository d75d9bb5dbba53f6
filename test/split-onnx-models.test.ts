/** @jest-environment ./test/support/native-arrays-environment.js */
import { open } from 'node:fs/promises';
import * as ort from 'onnxruntime-node';
import { type ExampleModel, MODELS } from '../demo/models.js';
import { compareRuns } from '../src/cli/compare-onnx-runs.js';
import { checkOnnxSplit } from '../src/models/onnx/check-split.js';
import { compareOutputs } from '../src/models/onnx/compare-outputs.js';
import { type OnnxSplitReport, splitOnnx } from '../src/models/onnx/split.js';
import { blank, folder, infer, layout, readTensors } from './support/split-onnx.js';

const feedsOf = (model: ExampleModel) =>
  Object.fromEntries(
    Object.entries(model.feeds()).map(([name, { type, data, dims }]) => [name, new ort.Tensor(type, data, dims)]),
  );

const bits = (outputs: ort.InferenceSession.ReturnType) =>
  Object.entries(outputs).map(([name, { data }]) => {
    const { buffer, byteOffset, byteLength } = data as Float32Array;
    return [name, Buffer.from(buffer, byteOffset, byteLength).toString('hex')];
  });

async function weightFeeds(path: string) {
  const { tensors } = await readTensors(path);
  return Object.fromEntries(
    [...tensors].map(([name, { shape, data }]) => [
      name,
      new ort.Tensor('float32', new Float32Array(Uint8Array.from(data).buffer), shape),
    ]),
  );
}

async function flipLastByte(report: OnnxSplitReport) {
  const { bytes } = await layout(report.weights);
  const handle = await open(report.weights, 'r+');
  await handle.write(Buffer.of(bytes.at(-1)! ^ 1), 0, 1, bytes.length - 1);
  await handle.close();
}

test('the models cover nested graphs and Constant nodes', async () => {
  const named = (name: string) => splitOnnx(MODELS.find((model) => model.name === name)!.file, { out: folder });
  const nested = await named('silero-vad');
  expect(nested.tensors.length).toBe(18);
  expect(nested.tensors.every(({ graph, from }) => graph.startsWith('/If_0.') && from === 'constant')).toBe(true);
  const constants = await named('PP-OCRv4 recogniser');
  expect(constants.tensors.length).toBe(61);
  expect(constants.bytes).toBe(10_730_532);
  expect(constants.tensors.every(({ graph, from }) => graph === '' && from === 'constant')).toBe(true);
  expect(constants.inline.map(({ reason }) => reason)).toContain('below the floor of 1024 bytes');
});

const supporting = (mode: ExampleModel['modes'][number]) => MODELS.filter(({ modes }) => modes.includes(mode));

describe('a graph that points into the .safetensors file', () => {
  test.each(supporting('external-data'))('gives the same bits: $name', async (model) => {
    const report = await splitOnnx(model.file, { out: folder });
    const expected = bits(await infer(model.file, feedsOf(model)));
    expect(bits(await infer(report.graph, feedsOf(model)))).toEqual(expected);
    expect(await checkOnnxSplit(report)).toBe(report.bytes);

    await blank(report.weights);
    expect(bits(await infer(report.graph, feedsOf(model)))).not.toEqual(expected);
    await expect(checkOnnxSplit(report)).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH' });
  });
});

describe('a graph that takes its weights as inputs', () => {
  test.each(supporting('inputs'))('gives the same numbers: $name', async (model) => {
    const report = await splitOnnx(model.file, { out: folder, asInputs: true });
    const expected = await infer(model.file, feedsOf(model));
    const weights = await weightFeeds(report.weights);
    expect(Object.keys(weights).sort()).toEqual(report.tensors.map(({ name }) => name).sort());
    const found = await infer(report.graph, { ...feedsOf(model), ...weights });
    expect(compareOutputs(found, expected)).toMatchObject({ withinTolerance: true });
    expect(await checkOnnxSplit(report)).toBe(report.bytes);

    await blank(report.weights);
    const wrong = await infer(report.graph, { ...feedsOf(model), ...(await weightFeeds(report.weights)) });
    expect(compareOutputs(wrong, expected)).toMatchObject({ withinTolerance: false });
  });
});

describe('--check', () => {
  const classifier = MODELS.find(({ name }) => name === 'PP-OCR classifier')!;

  test.each([false, true])('finds a single wrong bit (as inputs: %s)', async (asInputs) => {
    const report = await splitOnnx(classifier.file, { out: folder, asInputs });
    await flipLastByte(report);
    await expect(checkOnnxSplit(report)).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', path: report.weights });
  });

  test.each([false, true])('runs both graphs on random inputs (as inputs: %s)', async (asInputs) => {
    const report = await splitOnnx(classifier.file, { out: folder, asInputs });
    const shapes = { x: [1, 3, 48, 192] };
    expect(await compareRuns(ort, report, shapes)).toMatchObject({ withinTolerance: true, inputs: shapes });
    await blank(report.weights);
    expect(await compareRuns(ort, report, shapes)).toMatchObject({ withinTolerance: false });
  });
});

describe('compareOutputs', () => {
  const outputs = (...data: number[]) => ({ y: { data } });
  test.each([
    [[1], [1], 0, true],
    [[1 + 9e-5], [1], 9e-5, true],
    [[1 + 2e-4], [1], 2e-4, false],
    [[9e-6], [0], 9e-6, true],
    [[2e-5], [0], 2e-5, false],
    [[Number.NaN], [1], Number.POSITIVE_INFINITY, false],
    [[Number.NaN], [Number.NaN], 0, true],
    [[1], [Number.POSITIVE_INFINITY], Number.POSITIVE_INFINITY, false],
    [[1, 2], [1], Number.POSITIVE_INFINITY, false],
  ])('of %j and %j', (found, expected, largest, withinTolerance) => {
    const difference = compareOutputs(outputs(...found), outputs(...expected));
    expect(difference.withinTolerance).toBe(withinTolerance);
    expect(difference.largest).toBeCloseTo(largest, 9);
  });

  test('misses no output', () => {
    expect(compareOutputs({}, outputs(1))).toMatchObject({ withinTolerance: false });
  });
});
