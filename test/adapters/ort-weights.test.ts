/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, mkdtemp, open, readFile, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import * as ort from 'onnxruntime-node';
import { createSession, onnxruntime } from '../../adapters/ort/index.js';
import { SafeTensorsFileLoader } from '../../src/index.js';
import { nativeMetrics } from '../../src/native.js';
import { saveFile } from '../../src/save-file.js';
import {
  bytesOf,
  externalTensor,
  floats,
  graph,
  model,
  node,
  rawTensor,
  TYPES,
  tensor,
  value,
} from '../support/onnx-model.js';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ort-weights-'));
});
afterEach(() => rm(folder, { recursive: true }));

const W = floats(512, 0.5);
const x = () => new ort.Tensor('float32', floats(512), [512]);
const sum = Float32Array.from(floats(512), (v, i) => v + W[i]!);

type Tensors = Parameters<typeof saveFile>[0];
const f32 = (name: string, data: Float32Array, shape = [data.length]) => ({
  name,
  dtype: 'F32' as const,
  shape,
  data: bytesOf(data),
});

async function save(tensors: Tensors, name = 'm.safetensors') {
  const path = join(folder, name);
  await saveFile(tensors, path);
  return path;
}
async function write(bytes: Uint8Array, name = 'm.onnx') {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}
/** A file of a length that nothing was written to. */
async function hole(name: string, length: number) {
  await writeFile(join(folder, name), '');
  await truncate(join(folder, name), length);
}

/** y = x + w, whose w is external data. */
const adding = (location: string, extra = {}) =>
  model({
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [externalTensor('w', [512], { location, offset: '0', length: '2048', ...extra })],
    inputs: [value('x', [512])],
    outputs: [value('y', [512])],
  });

async function run(
  session: { run(feeds: object): Promise<ort.InferenceSession.ReturnType>; release(): Promise<void> },
  feeds: object = { x: x() },
) {
  try {
    return (await session.run(feeds)).y!.data;
  } finally {
    await session.release();
  }
}
/** Bytes that are held once what nobody reaches has been collected: typed arrays hold their memory until then. */
const released = async () => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let i = 0; i < 100 && nativeMetrics().hostBytes > 0; ++i) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return nativeMetrics().hostBytes;
};

describe('placeholders never compute', () => {
  test('a 0-byte file: the weights are used', async () => {
    await writeFile(join(folder, 'w.bin'), '');
    const weights = await save([f32('w', W)]);
    expect(await run(await createSession(ort, await write(adding('w.bin')), { weights }))).toEqual(sum);
  });

  test('a file of zeros: the weights are used', async () => {
    await hole('w.bin', 1 << 20);
    const weights = await save([f32('w', W)]);
    expect(await run(await createSession(ort, await write(adding('w.bin')), { weights }))).toEqual(sum);
  });

  test('a constant that ONNX Runtime folds while it optimizes is computed from the weights', async () => {
    await hole('w.bin', 1 << 20);
    const path = await write(
      model({
        nodes: [node('Neg', ['w'], ['n']), node('Add', ['x', 'n'], ['y'])],
        initializers: [externalTensor('w', [512], { location: 'w.bin', offset: '0', length: '2048' })],
        inputs: [value('x', [512])],
        outputs: [value('y', [512])],
      }),
    );
    const weights = await save([f32('w', W)]);
    for (const graphOptimizationLevel of ['all', 'disabled'] as const) {
      const session = await createSession(ort, path, { weights, sessionOptions: { graphOptimizationLevel } });
      expect(await run(session)).toEqual(Float32Array.from(floats(512), (v, i) => v - W[i]!));
    }
  });

  test.each(['a hole', 'nothing'])('without weights: a file of %s is a typed error', async (what) => {
    await hole('w.bin', what === 'a hole' ? 1 << 20 : 0);
    const refused = createSession(ort, await write(adding('w.bin')));
    await expect(refused).rejects.toMatchObject({
      code: what === 'a hole' ? 'UNKNOWN_TENSOR' : 'UNEXPECTED_EOF',
      tensor: 'w',
      message: expect.stringContaining('option weights'),
    });
  });

  test('a weight that the files lack is a typed error before anything runs, and names both sides', async () => {
    await hole('w.bin', 1 << 20);
    const weights = await save([f32('v', W), f32('t', new Float32Array(600), [2, 300])]);
    const error = await createSession(ort, await write(adding('w.bin')), { weights }).catch((e) => e);
    expect(error).toMatchObject({ code: 'UNKNOWN_TENSOR', unmatched: { model: ['w'], weights: ['t', 'v'] } });
    expect(error.message).toMatch(/"w" F32 \[512\] \(like "v"\?\).*"t" F32 \[2, 300\].*names: \{ "w": "[tv]" \}/);
  });

  test('also when only some are lacking, and also with allowUnmatched', async () => {
    await hole('w.bin', 1 << 20);
    const path = await write(
      model({
        nodes: [node('Add', ['x', 'v'], ['t']), node('Add', ['t', 'w'], ['y'])],
        initializers: ['v', 'w'].map((name) =>
          externalTensor(name, [512], { location: 'w.bin', offset: '0', length: '2048' }),
        ),
        inputs: [value('x', [512])],
        outputs: [value('y', [512])],
      }),
    );
    const weights = await save([f32('v', W)]);
    await expect(createSession(ort, path, { weights })).rejects.toMatchObject({
      code: 'UNKNOWN_TENSOR',
      unmatched: { model: ['w'], weights: [] },
    });
    await expect(createSession(ort, path, { weights, allowUnmatched: true })).rejects.toMatchObject({
      code: 'UNKNOWN_TENSOR',
      tensor: 'w',
      message: expect.stringContaining('a hole in the file'),
    });
  });
});

describe('models as people have them', () => {
  test('external data that point into a .safetensors file, without saying so again', async () => {
    const weights = await save([f32('other', new Float32Array(512)), f32('w', W)]);
    const bytes = await readFile(weights);
    const start = 8 + Number(bytes.readBigUInt64LE());
    const [begin] = JSON.parse(bytes.toString('utf8', 8, start)).w.data_offsets;
    const path = await write(adding('m.safetensors', { offset: String(start + begin) }));
    const session = await createSession(ort, path);
    expect(nativeMetrics().hostBytes).toBeGreaterThan(0); // loaded by this package
    expect(session.unmatched).toEqual({ model: [], weights: ['other'] });
    expect(await run(session)).toEqual(sum);
  });

  test('external data in a file of its own', async () => {
    await writeFile(join(folder, 'w.bin'), bytesOf(W));
    expect(await run(await createSession(ort, await write(adding('w.bin'))))).toEqual(sum);
  });

  test('some weights given, the others in a file of their own (allowUnmatched)', async () => {
    await mkdir(join(folder, 'weights'));
    await writeFile(join(folder, 'w.bin'), bytesOf(W));
    const path = await write(
      model({
        nodes: [node('Add', ['x', 'v'], ['t']), node('Add', ['t', 'w'], ['y'])],
        initializers: ['v', 'w'].map((name) =>
          externalTensor(name, [512], { location: 'w.bin', offset: '0', length: '2048' }),
        ),
        inputs: [value('x', [512])],
        outputs: [value('y', [512])],
      }),
    );
    const weights = await save([f32('v', floats(512, 2))], 'weights/m.safetensors');
    const session = await createSession(ort, path, { weights, allowUnmatched: true });
    expect(session.unmatched).toEqual({ model: ['w'], weights: [] });
    expect(await run(session)).toEqual(Float32Array.from(sum, (v, i) => v + 2 * (i - 256)));
  });

  test('weights inside the model: with none given they are used, given ones take their place', async () => {
    const bytes = model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [rawTensor('w', [512], W)],
      inputs: [value('x', [512])],
      outputs: [value('y', [512])],
    });
    expect(await run(await createSession(ort, bytes))).toEqual(sum);
    const weights = await save([f32('w', floats(512, 2))]);
    expect(await run(await createSession(ort, bytes, { weights }))).toEqual(floats(512, 3));
    // One that looks like it under another name is no accident.
    const renamed = await save([f32('w.0', floats(512, 2)), f32('z', W.slice(0, 256))], 'r.safetensors');
    await expect(createSession(ort, bytes, { weights: renamed })).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
  });

  test('bytes, with weights in another folder, under a link, as a list and as a folder', async () => {
    await mkdir(join(folder, 'blobs'));
    await mkdir(join(folder, 'snapshot'));
    const real = await save([f32('w', W)], 'blobs/abc');
    const link = join(folder, 'snapshot', 'model.safetensors');
    await symlink(real, link);
    for (const weights of [real, link, [link], join(folder, 'snapshot')]) {
      expect(await run(await createSession(ort, adding('gone.bin'), { weights }))).toEqual(sum);
    }
  });

  test('several files', async () => {
    const bytes = model({
      nodes: [node('Add', ['x', 'v'], ['t']), node('Add', ['t', 'w'], ['y'])],
      initializers: ['v', 'w'].map((name) =>
        externalTensor(name, [512], { location: 'gone', offset: '0', length: '2048' }),
      ),
      inputs: [value('x', [512])],
      outputs: [value('y', [512])],
    });
    await mkdir(join(folder, 'deep'));
    const weights = [
      await save([f32('v', floats(512, 2))], 'a.safetensors'),
      await save([f32('w', W)], 'deep/b.safetensors'),
    ];
    expect(await run(await createSession(ort, bytes, { weights }))).toEqual(
      Float32Array.from(sum, (v, i) => v + 2 * (i - 256)),
    );
  });

  test('weights that are inputs of the graph become constants', async () => {
    const bytes = model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      inputs: [value('x', [512]), value('w', [512])],
      outputs: [value('y', [512])],
    });
    const weights = await save([f32('w', W)]);
    const session = await createSession(ort, bytes, { weights });
    expect(session.inputNames).toEqual(['x']);
    expect(await run(session)).toEqual(sum);
  });

  test('an initializer that callers may override: the given weights are its default', async () => {
    const bytes = model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [externalTensor('w', [512], { location: 'gone', offset: '0', length: '2048' })],
      inputs: [value('x', [512]), value('w', [512])],
      outputs: [value('y', [512])],
    });
    const weights = await save([f32('w', W)]);
    const session = await createSession(ort, bytes, { weights });
    expect(session.inputNames).toEqual(['x']);
    const w = new ort.Tensor('float32', floats(512, 3), [512]);
    expect((await session.run({ x: x(), w })).y!.data).toEqual(floats(512, 4));
    expect(await run(session)).toEqual(sum);
  });

  test('small tensors and those that give shapes go inside', async () => {
    const bytes = model({
      nodes: [
        node('Add', ['x', 'w'], ['t']),
        node('Reshape', ['t', 'shape'], ['r']),
        node('Mul', ['r', 'scale'], ['y']),
      ],
      initializers: [
        externalTensor('w', [512], { location: 'gone', offset: '0', length: '2048' }),
        externalTensor('shape', [2], { location: 'gone', offset: '0', length: '16' }, TYPES.I64),
        externalTensor('scale', [1], { location: 'gone', offset: '0', length: '4' }),
      ],
      inputs: [value('x', [512])],
      outputs: [value('y', [16, 32])],
    });
    const shape = { name: 'shape', dtype: 'I64' as const, shape: [2], data: bytesOf(BigInt64Array.of(16n, 32n)) };
    const weights = await save([f32('w', W), shape, f32('scale', Float32Array.of(2))]);
    expect(await run(await createSession(ort, bytes, { weights }))).toEqual(sum.map((v) => v * 2));
  });

  test('graphs inside nodes that use one name for different weights', async () => {
    const branch = (op: string, offset: number) =>
      graph({
        nodes: [node(op, ['x', 'w'], ['r'])],
        initializers: [
          externalTensor('w', [512], { location: 'm.safetensors', offset: String(offset), length: '2048' }),
        ],
        outputs: [value('r', [512])],
      });
    const weights = await save([f32('a', W), f32('b', floats(512, 2))]);
    const file = await readFile(weights);
    const start = 8 + Number(file.readBigUInt64LE());
    const header = JSON.parse(file.toString('utf8', 8, start));
    const at = (name: string) => start + header[name].data_offsets[0];
    const path = await write(
      model({
        nodes: [
          node('If', ['c'], ['y'], {
            then_branch: { graph: branch('Add', at('a')) },
            else_branch: { graph: branch('Sub', at('b')) },
          }),
        ],
        inputs: [value('c', [1], TYPES.BOOL), value('x', [512])],
        outputs: [value('y', [512])],
      }),
    );
    for (const options of [{ weights }, {}]) {
      const session = await createSession(ort, path, options);
      const c = (on: number) => new ort.Tensor('bool', Uint8Array.of(on), [1]);
      expect((await session.run({ c: c(1), x: x() })).y!.data).toEqual(sum);
      expect((await session.run({ c: c(0), x: x() })).y!.data).toEqual(floats(512).map((v) => v - 2 * v));
      await session.release();
    }
  });

  test('float16 and int8 weights keep their bits', async () => {
    const bytes = model({
      nodes: [node('Identity', ['w'], ['y'])],
      initializers: [externalTensor('w', [1024], { location: 'gone', offset: '0', length: '2048' }, TYPES.F16)],
      outputs: [value('y', [1024], TYPES.F16)],
    });
    const data = Uint16Array.from({ length: 1024 }, (_, i) => i * 7);
    const weights = await save([{ name: 'w', dtype: 'F16', shape: [1024], data: bytesOf(data) }]);
    const y = (await run(await createSession(ort, bytes, { weights }), {})) as Uint16Array;
    expect(new Uint16Array(y.buffer, y.byteOffset, y.length)).toEqual(data);
  });
});

describe('names', () => {
  test('say which tensor is which weight', async () => {
    const weights = await save([f32('layer.weight', W), f32('w', new Float32Array(512))]);
    const session = await createSession(ort, adding('gone'), { weights, names: { w: 'layer.weight' } });
    expect(session.unmatched).toEqual({ model: [], weights: ['w'] });
    expect(await run(session)).toEqual(sum);
  });

  test.each([
    [{ v: 'w' }, /no weight "v"/],
    [{ w: 'v' }, /no tensor "v"/],
    [{ w: 1 }, /no tensor 1/],
  ])('%j name nothing', async (names, message) => {
    const weights = await save([f32('w', W)]);
    await expect(createSession(ort, adding('gone'), { weights, names: names as never })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });

  const matrix = model({
    nodes: [node('MatMul', ['x', 'w'], ['y'])],
    initializers: [externalTensor('w', [16, 32], { location: 'gone', offset: '0', length: '2048' })],
    inputs: [value('x', [1, 16])],
    outputs: [value('y', [1, 32])],
  });
  test('a transposed weight of the same name is recognised and said', async () => {
    const weights = await save([f32('w', W, [32, 16])]);
    await expect(createSession(ort, matrix, { weights })).rejects.toMatchObject({
      code: 'TENSOR_INVALID_INFO',
      tensor: 'w',
      message: expect.stringMatching(/F32 \[16, 32\].*F32 \[32, 16\].*transposed/),
    });
  });
  test('a transposed weight of another name is recognised and said', async () => {
    const weights = await save([f32('fc.weight', W, [32, 16])]);
    await expect(createSession(ort, matrix, { weights })).rejects.toMatchObject({
      code: 'UNKNOWN_TENSOR',
      message: expect.stringMatching(/"w" F32 \[16, 32\] \(transposed, like "fc\.weight"\?\)/),
    });
  });
  test('another dtype is refused', async () => {
    const weights = await save([{ name: 'w', dtype: 'F16', shape: [512], data: new Uint8Array(1024) }]);
    await expect(createSession(ort, adding('gone'), { weights })).rejects.toMatchObject({
      code: 'TENSOR_INVALID_INFO',
      message: expect.stringMatching(/is F32 \[512\].*is F16 \[512\]/),
    });
  });
});

describe('one set of weights', () => {
  const load = async (path: string) => {
    const loader = new SafeTensorsFileLoader();
    await loader.addFilenames(path);
    const buffer = await loader.copyFilesToDevice();
    await loader.close();
    return buffer;
  };

  test('serves several sessions in the memory it was loaded into', async () => {
    const buffer = await load(await save([f32('w', W)]));
    const { hostBytes } = nativeMetrics();
    const sessions = [];
    for (let i = 0; i < 3; ++i) sessions.push(await createSession(ort, adding('gone'), { weights: buffer }));
    expect(nativeMetrics().hostBytes).toBe(hostBytes);
    const w = await buffer.getTensor('w');
    // The very memory: what is written there is what sessions compute with.
    new Float32Array((w.data as Float32Array).buffer, (w.data as Float32Array).byteOffset, 512).fill(1);
    w.dispose();
    for (const session of sessions) {
      expect((await session.run({ x: x() })).y!.data).toEqual(floats(512).map((v) => v + 1));
    }
    await buffer.close();
    for (const session of sessions) expect(await run(session)).toEqual(floats(512).map((v) => v + 1));
    expect(await released()).toBe(0);
  });

  test.each(['buffer first', 'session first'])(
    'is given back with the last of buffer and session: %s',
    async (order) => {
      const buffer = await load(await save([f32('w', W)]));
      const session = await createSession(ort, adding('gone'), { weights: buffer });
      if (order === 'buffer first') {
        await buffer.close();
        expect(nativeMetrics().hostBytes).toBeGreaterThan(0);
        expect(await run(session)).toEqual(sum);
      } else {
        await session.release();
        expect(nativeMetrics().hostBytes).toBeGreaterThan(0);
        const w = await buffer.getTensor('w');
        expect(w.data).toEqual(W);
        w.dispose();
        await buffer.close();
      }
      expect(await released()).toBe(0);
    },
  );

  test('of a closed buffer is refused, and so is one of another framework', async () => {
    const path = await save([f32('w', W)]);
    const closed = await load(path);
    await closed.close();
    await expect(createSession(ort, adding('gone'), { weights: closed })).rejects.toMatchObject({ code: 'CLOSED' });
    const loader = new SafeTensorsFileLoader({ framework: onnxruntime(ort) });
    await loader.addFilenames(path);
    const adopted = await loader.copyFilesToDevice();
    await expect(createSession(ort, adding('gone'), { weights: adopted as never })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('framework'),
    });
    await adopted.close();
    await loader.close();
  });

  test.each(['replaced', 'written', 'removed'])(
    'whose file was %s since is refused: constants are folded from the file',
    async (how) => {
      const path = await save([f32('w', W)]);
      const buffer = await load(path);
      if (how === 'replaced') await rename(await save([f32('w', floats(512, 9))], 'n.safetensors'), path);
      else if (how === 'removed') await rm(path);
      else {
        const handle = await open(path, 'r+');
        await handle.write(Buffer.of(1), 0, 1, 200);
        await handle.utimes(1, 1);
        await handle.close();
      }
      await expect(createSession(ort, adding('gone'), { weights: buffer })).rejects.toMatchObject({
        code: expect.stringMatching(
          how === 'removed' ? /FILE_CHANGED|ORT_ERROR|INVALID_ARGUMENT|IO_ERROR/ : /FILE_CHANGED/,
        ),
      });
      await buffer.close();
      expect(await released()).toBe(0);
    },
  );
});

test('progress and copier reach the loader', async () => {
  const weights = await save([f32('w', W)]);
  const seen: string[] = [];
  const session = await createSession(ort, adding('gone'), {
    weights,
    copier: 'nogds',
    onProgress: ({ status }) => seen.push(status),
  });
  await session.release();
  expect(seen).toContain('done');
  await expect(createSession(ort, adding('gone'), { weights, copier: 'nope' })).rejects.toMatchObject({
    code: 'UNKNOWN_COPIER',
  });
});

test('only the tensors that the model wants are loaded', async () => {
  const weights = await save([f32('w', W), f32('huge', new Float32Array(1 << 20))]);
  const session = await createSession(ort, adding('gone'), { weights });
  expect(nativeMetrics().hostBytes).toBeLessThan(1 << 20);
  expect(session.unmatched.weights).toEqual(['huge']);
  await session.release();
});

test('a model that names files outside its folder is refused', async () => {
  const path = await write(adding('../secret'));
  await expect(createSession(ort, path)).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH' });
});

test('an unused model tensor of strings is left alone', async () => {
  const bytes = model({
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [
      externalTensor('w', [512], { location: 'gone', offset: '0', length: '2048' }),
      tensor('s', [1], 8, { 6: 'text' }),
    ],
    inputs: [value('x', [512])],
    outputs: [value('y', [512])],
  });
  const weights = await save([f32('w', W)]);
  const session = await createSession(ort, bytes, { weights, sessionOptions: { logSeverityLevel: 3 } });
  expect(await run(session)).toEqual(sum);
});
