import { readFileSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseModel } from '../src/models/onnx/graph.js';
import { TENSOR } from '../src/models/onnx/schema.js';
import { SparseModel } from '../src/models/onnx/sparse-model.js';
import { bytesOf, floats, graph, message, model, node, rawTensor, value } from './support/onnx-model.js';
import { testFolder } from './support/tensor-files.js';

// Reading an .onnx file without the data of its large tensors.

const folder = testFolder();
const path = join(folder, 'm.onnx');
const MIB = 2 ** 20;
/** 2 MiB, no byte of them 0. */
const data = (seed: number) => new Float32Array(MIB / 2).fill(1.1 + seed);
const large = (name: string, seed: number) => rawTensor(name, [MIB / 2], data(seed));
const branch = (name: string, seed: number) =>
  graph({
    nodes: [
      node('Constant', [], [`${name}c`], { value: { tensor: large('', seed) } }),
      node('Add', [name, `${name}c`], [`${name}y`]),
    ],
    initializers: [large(name, seed + 1)],
    outputs: [value(`${name}y`, [MIB / 2])],
  });

/** 22 MiB in initializers, Constants, two inner graphs and a function, and some small tensors between them. */
function write(): Buffer {
  const inFunction = node('Constant', [], ['f'], { value: { tensor: large('', 9) } });
  const bytes = model({
    nodes: [
      node('Constant', [], ['c'], { value: { tensor: large('', 1) } }),
      node('If', ['which'], ['y'], { then_branch: { graph: branch('t', 2) }, else_branch: { graph: branch('e', 4) } }),
    ],
    initializers: [large('a', 6), rawTensor('small', [64], floats(64)), large('b', 7), large('c', 8), large('d', 10)],
    outputs: [value('y', [MIB / 2])],
    functions: [message({ 1: 'F', 7: inFunction })],
  });
  writeFileSync(path, bytes);
  return readFileSync(path);
}

const zeros = (bytes: Uint8Array) => bytes.every((byte) => byte === 0);

test('large data are left out, wherever they are, until they are asked for', async () => {
  const whole = write();
  const file = await SparseModel.open(path);
  const { weights } = parseModel(file.bytes, path, 0);
  expect(weights.map(({ info }) => [info.name, info.byteLength])).toEqual(
    parseModel(whole, path, 0).weights.map(({ info }) => [info.name, info.byteLength]),
  );
  const rawOf = (name: string) => weights.find(({ info }) => info.name === name)!.tensor.bytes(TENSOR.rawData)[0]!;
  for (const name of ['a', 'b', 'd', 'c', 't', 'tc', 'e', 'ec']) {
    // Some bytes at the beginning may have come with what is before them.
    expect({ name, zeros: zeros(rawOf(name).subarray(128 * 1024)) }).toEqual({ name, zeros: true });
  }
  expect(rawOf('small')).toEqual(Buffer.from(bytesOf(floats(64))));

  const unneeded = weights.filter(({ info }) => ['a', 't', 'ec'].includes(info.name));
  await file.complete(unneeded.map(({ tensor }) => tensor));
  expect(zeros(rawOf('a').subarray(128 * 1024))).toBe(true);
  for (const { info, tensor } of weights) {
    if (['a', 't', 'ec'].includes(info.name)) continue;
    const [raw] = tensor.bytes(TENSOR.rawData);
    const at = raw!.byteOffset - file.bytes.byteOffset;
    expect(Buffer.compare(raw!, whole.subarray(at, at + raw!.length))).toBe(0);
  }
  await file.close();
});

test('with nothing left out they are the bytes of the file', async () => {
  const whole = write();
  const file = await SparseModel.open(path);
  await file.complete();
  expect(Buffer.compare(file.bytes, whole)).toBe(0);
  await file.close();
});

test('a file that is changed meanwhile is FILE_CHANGED', async () => {
  write();
  const file = await SparseModel.open(path);
  utimesSync(path, 1, 1);
  await expect(file.complete()).rejects.toMatchObject({ code: 'FILE_CHANGED', path });
  await file.close();
});

test('broken files are refused as if they had been read whole', async () => {
  const whole = write();
  const broken = [whole.subarray(0, whole.length - 1), whole.subarray(0, 17 * MIB), Buffer.alloc(17 * MIB, 0xff)];
  // Lengths of the graph and of what is in it that are a little or much too large.
  for (const at of [2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 20, 24]) {
    const bytes = Buffer.from(whole);
    bytes[at] = bytes[at]! ^ 0x7f;
    broken.push(bytes);
  }
  const outcome = (parse: () => unknown) => {
    try {
      parse();
      return 'parsed';
    } catch (error) {
      return (error as Error).message;
    }
  };
  for (const bytes of broken) {
    writeFileSync(path, bytes);
    const file = await SparseModel.open(path);
    const sparse = outcome(() => parseModel(file.bytes, path, 0));
    expect(sparse).toBe(outcome(() => parseModel(bytes, path, 0)));
    await file.close();
  }
});
