/** @jest-environment ./test/support/native-arrays-environment.js */
import { open, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession, onnxruntime } from '../../adapters/ort/index.js';
import { SafeTensorsFileLoader } from '../../src/index.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import { externalTensor, floats, model, node, tensor, value } from '../support/onnx-model.js';
import { adding, f32, folder, hole, released, run, save, sum, W, write, x } from '../support/ort-weights.js';

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

test('an input with a dimension of -1, as some exporters write open ones, is no weight', async () => {
  const path = await write(
    model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [externalTensor('w', [512], { location: 'gone' })],
      inputs: [value('x', [-1, 512])],
      outputs: [value('y', [-1, 512])],
    }),
  );
  const session = await createSession(ort, path, { weights: await save([f32('w', W)]) });
  expect(await run(session, { x: new ort.Tensor('float32', floats(512), [1, 512]) })).toEqual(sum);
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

describe('element types', () => {
  /** y = Cast(w) to float, whose w is of a type by its number. */
  const casting = (type: number, bytes: number) =>
    model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [externalTensor('w', [1024], { location: 'gone', offset: '0', length: String(bytes) }, type)],
      inputs: [value('x', [1024], type)],
      outputs: [value('y', [1024], type)],
    });

  // Numbers 24 and 26 mean other types in onnxruntime 1.29 and 1.30 than in ONNX: it is never given tensors of these
  // types, but reads them itself, and then refuses to add them. 14 is refused by it.
  test.each([
    ['F8_E8M0', 24, 1024],
    ['F8_E8M0', 26, 1024],
    ['C64', 14, 8192],
    ['C64', 15, 8192],
  ] as const)('%s for a weight of type %i is refused, never guessed', async (dtype, type, bytes) => {
    const weights = await save([{ name: 'w', dtype, shape: [1024], data: new Uint8Array(bytes) }]);
    await expect(createSession(ort, casting(type, bytes), { weights })).rejects.toMatchObject({
      code: expect.stringMatching(/^(ORT_ERROR|TENSOR_INVALID_INFO|INVALID_ARGUMENT)$/),
    });
    expect(await released()).toBe(0);
  });
});
