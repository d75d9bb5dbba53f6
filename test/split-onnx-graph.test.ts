/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { checkOnnxSplit } from '../src/models/onnx/check-split.js';
import { Message } from '../src/models/onnx/protobuf.js';
import { GRAPH, MODEL, NODE, TENSOR, VALUE_INFO } from '../src/models/onnx/schema.js';
import { splitOnnx } from '../src/models/onnx/split.js';
import {
  addModel,
  bytesOf,
  floats,
  graph,
  message,
  model,
  node,
  rawTensor,
  TYPES,
  value,
} from './support/onnx-model.js';
import { folder, graphOf, infer, readTensors, W, write, x } from './support/split-onnx.js';

// The graph that a split writes, and where it goes with its weights.

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
