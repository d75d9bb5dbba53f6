/** @jest-environment ./test/support/native-arrays-environment.js */
import { readFile } from 'node:fs/promises';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { nativeMetrics, SafeTensorsMetadata } from '../../src/index.js';
import { externalTensor, floats, model, node, rawTensor, TYPES, type tensor, value } from '../support/onnx-model.js';
import { f32, released, run, save, write } from '../support/ort-weights.js';

// Types that safetensors lacks: their bytes are stored as U8, and a model may point at them, or go by the name.

const COUNT = 256 * 1024;
const BYTES = COUNT / 2;
const data = Uint8Array.from({ length: BYTES }, (_, i) => (i * 11) % 251);
/** Element i as a signed number of 4 bits; the first is in the low half of its byte. */
const nibble = (i: number) => ((((data[i >> 1]! >> (i % 2 ? 4 : 0)) & 15) ^ 8) - 8) / 2;
const expected = Float32Array.from({ length: 512 }, (_, i) => nibble(COUNT - 512 + i));

const dequantizing = (w: ReturnType<typeof tensor>, type = 22) =>
  model(
    {
      nodes: [node('DequantizeLinear', ['w', 's'], ['d']), node('Slice', ['d', 'from', 'to'], ['y'])],
      initializers: [w, rawTensor('s', [], Float32Array.of(0.5))],
      inputs: [value('from', [1], TYPES.I64), value('to', [1], TYPES.I64)],
      outputs: [value('y', [512])],
      opsets: { '': 21 },
    },
    type === 22 ? 10 : 8,
  );
const feeds = () => {
  const at = (n: number) => new ort.Tensor('int64', BigInt64Array.of(BigInt(n)), [1]);
  return { from: at(COUNT - 512), to: at(COUNT) };
};
const int4 = (location: string, offset: number) =>
  dequantizing(externalTensor('w', [COUNT], { location, offset: `${offset}`, length: `${BYTES}` }, 22));
const u8 = (name: string, bytes = data) => ({ name, dtype: 'U8' as const, shape: [bytes.length], data: bytes });

async function offsetOf(path: string, name: string): Promise<number> {
  const header = await SafeTensorsMetadata.fromFile(path);
  return header.headerLength + 8 + header.get(name)!.dataOffsets[0];
}

test('INT4 is taken by place when the bytes agree, whatever the tensor is called', async () => {
  const path = await save([f32('other', floats(512)), u8('anything')]);
  const bytes = int4('m.safetensors', await offsetOf(path, 'anything'));
  const onnx = await write(bytes);
  for (const open of [
    () => createSession(ort, onnx),
    () => createSession(ort, onnx, { weights: path }),
    () => createSession(ort, bytes, { weights: path }),
  ]) {
    const session = await open();
    expect(nativeMetrics().hostBytes).toBeGreaterThanOrEqual(BYTES); // not read by ONNX Runtime itself
    expect(session.unmatched).toEqual({ model: [], weights: ['other'] });
    expect(await run(session, feeds())).toEqual(expected);
    expect(await released()).toBe(0);
  }
});

test('INT4 is taken by a name that says so, or by names; not by a name alone, nor with other bytes', async () => {
  const bytes = int4('gone', 0);
  const packed = await save([u8('w.int4')], 'packed.safetensors');
  expect(await run(await createSession(ort, bytes, { weights: packed }), feeds())).toEqual(expected);
  const renamed = await save(
    [
      u8('layer.int4'),
      u8(
        'w',
        data.map((byte) => byte ^ 255),
      ),
    ],
    'renamed.safetensors',
  );
  const session = await createSession(ort, bytes, { weights: renamed, names: { w: 'layer.int4' } });
  expect(await run(session, feeds())).toEqual(expected);
  for (const tensors of [[u8('w')], [u8('w.int4', data.subarray(1))], [u8('w.uint4')]]) {
    const weights = await save(tensors, 'wrong.safetensors');
    await expect(createSession(ort, bytes, { weights })).rejects.toMatchObject({
      code: expect.stringMatching(/^(TENSOR_INVALID_INFO|UNKNOWN_TENSOR)$/),
      message: expect.stringContaining('int4'),
    });
  }
});

test('an input of type INT4 becomes a weight', async () => {
  const bytes = model(
    {
      nodes: [node('DequantizeLinear', ['w.int4', 's'], ['d']), node('Slice', ['d', 'from', 'to'], ['y'])],
      initializers: [rawTensor('s', [], Float32Array.of(0.5))],
      inputs: [value('w.int4', [COUNT], 22), value('from', [1], TYPES.I64), value('to', [1], TYPES.I64)],
      outputs: [value('y', [512])],
      opsets: { '': 21 },
    },
    10,
  );
  const weights = await save([u8('w.int4')]);
  const session = await createSession(ort, bytes, { weights });
  expect(session.inputNames).toEqual(['from', 'to']);
  expect(await run(session, feeds())).toEqual(expected);
});

test('a place in a model in memory counts less than a name: the file may have been written anew', async () => {
  const first = floats(1024, 2);
  const second = floats(1024, 3);
  const path = await save([f32('a', first), f32('b', second)]);
  const [a, b] = [await offsetOf(path, 'a'), await offsetOf(path, 'b')];
  const at = (name: string, offset: number) =>
    externalTensor(name, [1024], { location: 'm.safetensors', offset: `${offset}`, length: '4096' });
  const difference = (aAt: number, bAt: number) =>
    model({
      nodes: [node('Sub', ['a', 'b'], ['y'])],
      initializers: [at('a', aAt), at('b', bAt)],
      outputs: [value('y', [1024])],
    });
  const right = first.map((v, i) => v - second[i]!);
  expect(await run(await createSession(ort, difference(a, b), { weights: path }), {})).toEqual(right);
  expect(await run(await createSession(ort, difference(b, a), { weights: path }), {})).toEqual(right);
  // On disk the place is what onnxruntime-node reads.
  const onnx = await write(difference(b, a));
  const plain = await ort.InferenceSession.create(onnx);
  const { y } = await plain.run({});
  expect(y!.data).toEqual(second.map((v, i) => v - first[i]!));
  expect(await run(await createSession(ort, onnx, { weights: path }), {})).toEqual(y!.data);
});

test('tensors without elements have no place: each is that of its own name and shape', async () => {
  const empty = (name: string, shape: number[]) => ({ name, dtype: 'F32' as const, shape, data: new Uint8Array(0) });
  const path = await save([empty('a', [0, 3]), empty('b', [0]), f32('w', floats(512, 2))]);
  const none = (name: string, shape: number[], offset: number) =>
    externalTensor(name, shape, { location: 'm.safetensors', offset: `${offset}`, length: '0' });
  const end = (await readFile(path)).length;
  const onnx = await write(
    model({
      nodes: [
        node('Shape', ['a'], ['sa']),
        node('Shape', ['b'], ['sb']),
        node('Concat', ['sa', 'sb'], ['y'], { axis: { int: 0 } }),
        node('Identity', ['w'], ['z']),
      ],
      initializers: [
        none('a', [0, 3], end),
        none('b', [0], end),
        externalTensor('w', [512], {
          location: 'm.safetensors',
          offset: `${await offsetOf(path, 'w')}`,
          length: '2048',
        }),
      ],
      outputs: [value('y', [3], TYPES.I64), value('z', [512])],
    }),
  );
  for (const options of [{}, { weights: path }, { weights: await save([f32('w', floats(512, 2))], 'w.safetensors') }]) {
    const session = await createSession(ort, onnx, options);
    const { y, z } = await session.run({});
    expect(y!.data).toEqual(BigInt64Array.of(0n, 3n, 0n));
    expect(z!.data).toEqual(floats(512, 2));
    await session.release();
  }
});
