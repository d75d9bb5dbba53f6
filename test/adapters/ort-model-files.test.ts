/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import {
  addModel,
  bytesOf,
  externalTensor,
  floats,
  graph,
  model,
  node,
  rawTensor,
  TYPES,
  value,
} from '../support/onnx-model.js';
import { adding, f32, folder, run, save, sum, W, write, x } from '../support/ort-weights.js';

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
      for (const followLinks of [true, false])
        expect(await run(await createSession(ort, adding('gone.bin'), { weights, followLinks }))).toEqual(sum);
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

  test('a model in ORT format is handed on, by path and as bytes; it takes no weights', async () => {
    const onnx = await write(addModel(rawTensor('w', [512], W)));
    const path = join(folder, 'm.ort');
    const extra = { session: { save_model_format: 'ORT' } };
    const optimized = { graphOptimizationLevel: 'basic', optimizedModelFilePath: path, extra } as const;
    await (await ort.InferenceSession.create(onnx, optimized)).release();
    for (const given of [path, await readFile(path)]) {
      expect(await run(await createSession(ort, given))).toEqual(sum);
      const weights = await save([f32('w', W)]);
      await expect(createSession(ort, given, { weights })).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(/ORT format.*without weights/),
      });
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
