/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdirSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import {
  type CopyRequest,
  createCopierConstructor,
  nativeMetrics,
  registerCopier,
  SafeTensorsMetadata,
} from '../../src/index.js';
import { saveFile } from '../../src/safetensors/save-file.js';
import { bytesOf, externalTensor, floats, graph, model, node, TYPES, value } from '../support/onnx-model.js';
import { collectedMetrics, NOTHING_HELD, testFolder } from '../support/tensor-files.js';

// Models whose weights are in files of no format of their own, as exporters write them: model.onnx_data.

const folder = testFolder();
const SIZE = 512;
const BYTES = SIZE * 4;
const outside = (
  name: string,
  offset: number,
  location = 'model.onnx_data',
  shape = [SIZE],
  type: number = TYPES.F32,
) => externalTensor(name, shape, { location, offset: String(offset), length: String(BYTES) }, type);

/** Writes `m/model.onnx` and, of these bytes, `m/model.onnx_data`. */
function write(onnx: Uint8Array, ...data: ArrayBufferView[]): { path: string; file: string } {
  mkdirSync(join(folder, 'm'), { recursive: true });
  const [path, file] = [join(folder, 'm', 'model.onnx'), join(folder, 'm', 'model.onnx_data')];
  writeFileSync(path, onnx);
  writeFileSync(file, Buffer.concat(data.map(bytesOf)));
  return { path, file };
}

/** y = x + a + b; a at byte 0, b behind it. */
const sumModel = (a = outside('a', 0), b = outside('b', BYTES)) =>
  model({
    nodes: [node('Add', ['x', 'a'], ['s']), node('Add', ['s', 'b'], ['y'])],
    initializers: [a, b],
    inputs: [value('x', [SIZE])],
    outputs: [value('y', [SIZE])],
  });
const x = () => new ort.Tensor('float32', floats(SIZE), [SIZE]);
const bits = (outputs: ort.InferenceSession.ReturnType) =>
  Object.values(outputs).map(({ data }) => Buffer.from(bytesOf(data as Float32Array)).toString('hex'));

/** Runs with onnxruntime-node itself and with ours; both must give the same bits. */
async function runsAlike(path: string, feeds: ort.InferenceSession.FeedsType, options = {}) {
  const theirs = await ort.InferenceSession.create(path);
  const ours = await createSession(ort, path, options);
  const expected = bits(await theirs.run(feeds));
  expect(bits(await ours.run(feeds))).toEqual(expected);
  const { hostBytes } = nativeMetrics();
  await Promise.all([theirs.release(), ours.release()]);
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
  return hostBytes;
}

/** A copier that reads as 'nogds' does, and shows each request first. */
function registerSpy(name: string, show: (request: CopyRequest) => void): void {
  registerCopier(name, (device) => {
    const make = createCopierConstructor('nogds', device);
    return (metadata, target) => {
      const inner = make(metadata, target);
      return {
        submitIo: (request) => {
          show(request);
          return inner.submitIo(request);
        },
        waitIo: (pending) => inner.waitIo(pending),
        close: () => inner.close(),
      };
    };
  });
}

test('without the option weights they are loaded by the copier, once', async () => {
  const { path, file } = write(sumModel(), floats(SIZE, 0.5), floats(SIZE, 3));
  const asked: string[] = [];
  registerSpy('counting', ({ path, ranges }) => {
    for (const { fileOffset, length } of ranges) asked.push(`${basename(path)} ${fileOffset} ${length}`);
  });
  expect(await runsAlike(path, { x: x() }, { copier: 'counting' })).toBe(2 * BYTES);
  expect(asked).toEqual([`${basename(file)} 0 ${BYTES}`, `${basename(file)} ${BYTES} ${BYTES}`]);
  expect(await runsAlike(path, { x: x() })).toBe(2 * BYTES);
});

test('weights that are the same bytes are loaded once; places may be odd and overlap', async () => {
  const { path } = write(sumModel(outside('a', 3), outside('b', 3)), new Uint8Array(3), floats(SIZE, 2));
  expect(await runsAlike(path, { x: x() })).toBe(BYTES);
  write(sumModel(outside('a', 0), outside('b', 1024)), floats(2 * SIZE, 2));
  await runsAlike(path, { x: x() });
});

test('weights of one name in two graphs keep their own bytes', async () => {
  const branch = (offset: number) =>
    graph({
      nodes: [node('Mul', ['x', 'w'], ['out'])],
      initializers: [outside('w', offset)],
      outputs: [value('out', [SIZE])],
    });
  const onnx = model({
    nodes: [node('If', ['which'], ['y'], { then_branch: { graph: branch(0) }, else_branch: { graph: branch(BYTES) } })],
    inputs: [value('which', [], TYPES.BOOL), value('x', [SIZE])],
    outputs: [value('y', [SIZE])],
  });
  const { path } = write(onnx, floats(SIZE, 0.5), floats(SIZE, 3));
  for (const which of [true, false]) await runsAlike(path, { which: new ort.Tensor('bool', [which], []), x: x() });
});

test('some weights in a .safetensors file, some in model.onnx_data', async () => {
  write(new Uint8Array(0), floats(SIZE, 3));
  const safetensors = join(folder, 'm', 'a.safetensors');
  // One tensor has the name of the weight that is elsewhere.
  const names = ['q', 'b'];
  await saveFile(
    names.map((name, i) => ({ name, dtype: 'F32', shape: [SIZE], data: bytesOf(floats(SIZE, i + 1)) })),
    safetensors,
  );
  const { dataStart } = await SafeTensorsMetadata.fromFile(safetensors);
  const path = join(folder, 'm', 'model.onnx');
  writeFileSync(path, sumModel(outside('a', dataStart, 'a.safetensors'), outside('b', 0)));
  expect(await runsAlike(path, { x: x() })).toBe(2 * BYTES);
});

test('4-bit integers, which safetensors has no dtype for, stay what they are', async () => {
  const onnx = model(
    {
      opsets: { '': 21 },
      nodes: [node('DequantizeLinear', ['q', 'scale'], ['w']), node('Add', ['x', 'w'], ['y'])],
      initializers: [
        externalTensor('q', [4 * BYTES], { location: 'model.onnx_data', offset: '0', length: String(2 * BYTES) }, 22),
        externalTensor('scale', [], { location: 'model.onnx_data', offset: String(2 * BYTES), length: '4' }),
      ],
      inputs: [value('x', [4 * BYTES])],
      outputs: [value('y', [4 * BYTES])],
    },
    10,
  );
  const { path } = write(
    onnx,
    Uint8Array.from({ length: 2 * BYTES }, (_, i) => (i * 37) % 256),
    Float32Array.of(0.25),
  );
  await runsAlike(path, { x: new ort.Tensor('float32', floats(4 * BYTES), [4 * BYTES]) });
});

test('what is wrong with the file is said before anything is computed', async () => {
  const { path, file } = write(sumModel(), floats(SIZE, 0.5), floats(SIZE, 3));
  truncateSync(file, 2 * BYTES - 1);
  await expect(createSession(ort, path)).rejects.toMatchObject({ code: 'UNEXPECTED_EOF', tensor: 'b' });
  truncateSync(file, 0);
  truncateSync(file, 2 * BYTES);
  await expect(createSession(ort, path)).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: 'a' });
});

test('a file that changes while it is loaded is FILE_CHANGED', async () => {
  const { path, file } = write(sumModel(), floats(SIZE, 0.5), floats(SIZE, 3));
  registerSpy('touching', () => utimesSync(file, 1, 1));
  await expect(createSession(ort, path, { copier: 'touching' })).rejects.toMatchObject({ code: 'FILE_CHANGED' });
});
