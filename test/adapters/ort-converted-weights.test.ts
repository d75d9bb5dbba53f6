/** @jest-environment ./test/support/native-arrays-environment.js */
import { rm } from 'node:fs/promises';
import * as ort from 'onnxruntime-node';
import { createSession, onnxruntime } from '../../adapters/ort/index.js';
import {
  type ConvertibleDType,
  type DTypeName,
  type FilesBufferOnDevice,
  fastsafeOpen,
  nativeMetrics,
  SafeTensorsFileLoader,
} from '../../src/index.js';
import { converted } from '../support/convert-reference.js';
import type { Entry } from '../support/model-files.js';
import { bytesOf, externalTensor, floats, graph, model, node, rawTensor, TYPES, value } from '../support/onnx-model.js';
import { f32, released, run, save, write } from '../support/ort-weights.js';

// Weights that a load converted have no longer the bytes, and often not the length, of those in their file.

const LENGTH = 512;
/** Small whole numbers, which F16, BF16 and F32 hold exactly. */
const numbers = Float32Array.from({ length: LENGTH }, (_, i) => (i % 200) - 100);
const X = floats(LENGTH);
const x = () => new ort.Tensor('float32', X, [LENGTH]);

function stored(name: string, dtype: DTypeName, values = numbers, shape = [values.length]): Entry {
  const single = { name, dtype: 'F32' as const, shape, bytes: bytesOf(values) };
  return dtype === 'F32' ? single : converted(single, dtype);
}
const saveAs = (entries: readonly Entry[], name?: string) =>
  save(
    entries.map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, data: bytes })),
    name,
  );

async function load(path: string, dtype?: ConvertibleDType): Promise<FilesBufferOnDevice> {
  const loader = new SafeTensorsFileLoader({ dtype });
  await loader.addFilenames(path);
  const buffer = await loader.copyFilesToDevice();
  await loader.close();
  return buffer;
}

const TYPE = { F16: TYPES.F16, BF16: TYPES.BF16, F32: TYPES.F32 } as const;
type Floating = keyof typeof TYPE;
const BYTES = { F16: 2, BF16: 2, F32: 4 };

/** y = x + Cast(w) in float, whose w of some dtype is external data that is nowhere. */
function casting(dtype: Floating, location = 'gone', offset = 0) {
  const length = LENGTH * BYTES[dtype];
  const to = { to: { int: 1 } };
  return model({
    nodes: [node('Cast', ['w'], ['c'], to), node('Add', ['x', 'c'], ['y'])],
    initializers: [externalTensor('w', [LENGTH], { location, offset: `${offset}`, length: `${length}` }, TYPE[dtype])],
    inputs: [value('x', [LENGTH])],
    outputs: [value('y', [LENGTH])],
  });
}
const SUM = Float32Array.from(X, (v, i) => v + numbers[i]!);

const FLOATS: readonly Floating[] = ['F16', 'BF16', 'F32'];
const CASES = FLOATS.flatMap((file) =>
  FLOATS.flatMap((dtype) => FLOATS.map((wanted): [Floating, Floating, Floating] => [file, dtype, wanted])),
);

test.each(CASES)(
  'a %s file loaded with dtype %s for a %s model: right numbers or an error',
  async (file, dtype, wanted) => {
    const buffer = await load(await saveAs([stored('w', file)]), dtype);
    try {
      const made = createSession(ort, casting(wanted), { weights: buffer });
      if (dtype === wanted) {
        expect(await run(await made, { x: x() })).toEqual(SUM);
      } else {
        const hint = file === dtype ? '' : `.*${file} in the file.*dtype: '${wanted}'`;
        await expect(made).rejects.toMatchObject({
          code: 'TENSOR_INVALID_INFO',
          tensor: 'w',
          message: expect.stringMatching(
            new RegExp(`"w" is ${wanted} \\[512\\].*tensor "w".*is ${dtype} \\[512\\]${hint}`),
          ),
        });
      }
    } finally {
      await buffer.close();
    }
    expect(await released()).toBe(0);
  },
);

test.each(['F16', 'BF16', 'F32'] as const)(
  'an F16 model whose external data are the very file, and a buffer of it loaded with dtype %s',
  async (dtype) => {
    const path = await saveAs([stored('other', 'F16'), stored('w', 'F16', floats(LENGTH, 2))]);
    const buffer = await load(path, dtype);
    const { metadata, index } = buffer.sourceOf('w');
    const offset = metadata.dataStart + metadata.frameAt(index).dataOffsets[0];
    const made = createSession(ort, await write(casting('F16', 'm.safetensors', offset)), { weights: buffer });
    if (dtype === 'F16') expect(await run(await made, { x: x() })).toEqual(X.map((v, i) => v + floats(LENGTH, 2)[i]!));
    else await expect(made).rejects.toMatchObject({ code: 'TENSOR_INVALID_INFO', tensor: 'w' });
    await buffer.close();
  },
);

test('a converted tensor has no place in its file: a model that points there does not get it', async () => {
  // The same length in the file and in memory: only the place could mislead.
  const path = await saveAs([stored('a', 'F16')]);
  const buffer = await load(path, 'BF16');
  const { metadata } = buffer.sourceOf('a');
  const bytes = casting('BF16', 'm.safetensors', metadata.dataStart);
  const refused = createSession(ort, await write(bytes), { weights: buffer });
  await expect(refused).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', unmatched: { model: ['w'], weights: ['a'] } });
  const named = await createSession(ort, await write(bytes), { weights: buffer, names: { w: 'a' } });
  expect(await run(named, { x: x() })).toEqual(SUM);
  await buffer.close();
});

test('names that map weights to converted tensors: the dtype in memory counts', async () => {
  const buffer = await load(await saveAs([stored('a', 'F16'), stored('b', 'F32')]), 'BF16');
  for (const name of ['a', 'b']) {
    const names = { w: name };
    expect(await run(await createSession(ort, casting('BF16'), { weights: buffer, names }), { x: x() })).toEqual(SUM);
    for (const wanted of ['F16', 'F32'] as const) {
      await expect(createSession(ort, casting(wanted), { weights: buffer, names })).rejects.toMatchObject({
        code: 'TENSOR_INVALID_INFO',
        tensor: name,
      });
    }
  }
  await buffer.close();
});

test('the file of converted weights is not needed any more, and may have changed', async () => {
  const path = await saveAs([stored('w', 'F16')]);
  const buffer = await load(path, 'F32');
  await rm(path);
  expect(await run(await createSession(ort, casting('F32'), { weights: buffer }), { x: x() })).toEqual(SUM);
  await buffer.close();
});

describe('more of them than each session may have for itself', () => {
  const SHAPE = [17, 1024, 1024];
  const [, , ROW] = SHAPE as [number, number, number];
  const BYTES_IN_MEMORY = 68 * 1024 * 1024;
  /** Converted once and repeated: the reference takes a microsecond an element. */
  const PATTERN = Float32Array.from({ length: 1024 }, (_, i) => (i % 128) - 64);
  const bigEntry = (dtype: Floating): Entry => {
    const [row] = [stored('w', dtype, PATTERN)];
    return { name: 'w', dtype, shape: SHAPE, bytes: Buffer.concat(Array(17 * 1024).fill(row.bytes)) };
  };
  const big = (name: string) =>
    externalTensor(name, SHAPE, { location: 'gone', offset: '0', length: `${BYTES_IN_MEMORY}` });

  test('memory is that of the buffer; what ONNX Runtime would fold is computed from it', async () => {
    const path = await saveAs([bigEntry('F16')]);
    const buffer = await load(path, 'F32');
    await rm(path);
    const bytes = model({
      nodes: [
        node('Neg', ['w'], ['n']),
        node('Gather', ['n', 'i'], ['g']),
        node('Gather', ['w', 'i'], ['h']),
        node('Add', ['g', 'h'], ['zero']),
        node('Add', ['zero', 'h'], ['y']),
      ],
      initializers: [big('w')],
      inputs: [value('i', [1], TYPES.I64)],
      outputs: [value('y', [1, 1024, ROW])],
    });
    const held = nativeMetrics().hostBytes;
    const { rss } = process.memoryUsage();
    const session = await createSession(ort, bytes, { weights: buffer });
    expect(process.memoryUsage().rss - rss).toBeLessThan(BYTES_IN_MEMORY / 2);
    expect(nativeMetrics().hostBytes).toBe(held);
    expect(session.inputNames).toEqual(['i']);
    const y = await run(session, { i: new ort.Tensor('int64', BigInt64Array.of(3n), [1]) });
    expect(Buffer.compare(bytesOf((y as Float32Array).subarray(0, ROW)), bytesOf(PATTERN))).toBe(0);
    await buffer.close();
    expect(await released()).toBe(0);
  });

  test('graphs inside nodes, Constants, and one name in several graphs', async () => {
    const branch = (op: string, w: object) =>
      graph({
        nodes: [...('node' in w ? [(w as { node: never }).node] : []), node(op, ['x', 'u'], ['r'])],
        initializers: 'tensor' in w ? [(w as { tensor: never }).tensor] : [],
        outputs: [value('r', [LENGTH])],
      });
    const u = (scale: number) => rawTensor('u', [LENGTH], floats(LENGTH, scale));
    const bytes = model({
      nodes: [
        node('If', ['c'], ['s'], {
          then_branch: { graph: branch('Add', { tensor: u(5) }) },
          else_branch: { graph: branch('Sub', { tensor: u(7) }) },
        }),
        node('Constant', [], ['k'], { value: { tensor: rawTensor('', [LENGTH], floats(LENGTH, 9)) } }),
        node('Add', ['s', 'k'], ['t']),
        node('Gather', ['w', 'i'], ['g']),
        node('Gather', ['g', 'j'], ['h']),
        node('ReduceSum', ['h'], ['z'], { keepdims: { int: 0 } }),
        node('Add', ['t', 'z'], ['y']),
      ],
      initializers: [big('w')],
      inputs: [value('c', [1], TYPES.BOOL), value('x', [LENGTH]), value('i', [], TYPES.I64), value('j', [], TYPES.I64)],
      outputs: [value('y', [LENGTH])],
    });
    const path = await saveAs([bigEntry('BF16'), stored('k', 'BF16', floats(LENGTH, 2))]);
    const buffer = await load(path, 'F32');
    const session = await createSession(ort, bytes, { weights: buffer, allowUnmatched: true });
    const index = (n: number) => new ort.Tensor('int64', BigInt64Array.of(BigInt(n)), []);
    const z = PATTERN.reduce((sum, v) => sum + v, 0);
    for (const c of [0, 1]) {
      const { y } = await session.run({
        c: new ort.Tensor('bool', Uint8Array.of(c), [1]),
        x: x(),
        i: index(2),
        j: index(1),
      });
      const at = (i: number) => X[i]! + (c ? 5 : -7) * (i - 256) + 2 * (i - 256) + z;
      expect(y!.data).toEqual(Float32Array.from({ length: LENGTH }, (_, i) => at(i)));
    }
    await session.release();
    await buffer.close();
  });
});

test.each(FLOATS)('tensors of onnxruntime(ort) have the type that they were loaded with: %s', async (dtype) => {
  const path = await saveAs([stored('w', 'F32')]);
  const expected = stored('w', dtype).bytes;
  const type = { F16: 'float16', F32: 'float32', BF16: '' }[dtype];
  const opened = await fastsafeOpen(path, { dtype, framework: onnxruntime(ort) });
  const half = { start: 0, stop: LENGTH / 2 };
  if (dtype === 'BF16') {
    await expect(opened.getTensor('w')).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'w' });
    await expect(opened.getSlice('w', half)).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'w' });
  } else {
    for (const [tensor, bytes] of [
      [await opened.getTensor('w'), expected],
      [await opened.getSlice('w', half), expected.subarray(0, expected.length / 2)],
    ] as const) {
      expect(tensor.type).toBe(type);
      expect(Buffer.compare(bytesOf(tensor.data as Float32Array), bytes)).toBe(0);
    }
  }
  await opened.close();
});

describe('weights that are not converted', () => {
  test('a tensor without a name is that of no weight', async () => {
    const weights = await save([f32('', floats(LENGTH, 9)), f32('w', numbers)]);
    expect(await run(await createSession(ort, casting('F32'), { weights }), { x: x() })).toEqual(SUM);
    const only = await save([f32('', numbers)], 'only.safetensors');
    await expect(createSession(ort, casting('F32'), { weights: only })).rejects.toMatchObject({
      code: 'UNKNOWN_TENSOR',
    });
  });

  test('one name in two branches, and one tensor of that name: an error, not the same weights twice', async () => {
    const branch = (offset: number) =>
      graph({
        nodes: [node('Add', ['x', 'w'], ['r'])],
        initializers: [externalTensor('w', [LENGTH], { location: 'gone', offset: `${offset}`, length: '2048' })],
        outputs: [value('r', [LENGTH])],
      });
    const bytes = model({
      nodes: [node('If', ['c'], ['y'], { then_branch: { graph: branch(0) }, else_branch: { graph: branch(2048) } })],
      inputs: [value('c', [1], TYPES.BOOL), value('x', [LENGTH])],
      outputs: [value('y', [LENGTH])],
    });
    const weights = await save([f32('w', numbers), f32('w_1', numbers)]);
    await expect(createSession(ort, bytes, { weights })).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
    await expect(createSession(ort, bytes, { weights, names: { w: 'w' } })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
  });
});
