/** @jest-environment ./test/support/native-arrays-environment.js */
import { execFileSync } from 'node:child_process';
import { mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { FastSafetensorsError } from '../../src/base/errors.js';
import { checkOnnxSplit } from '../../src/models/onnx/check-split.js';
import { TENSOR } from '../../src/models/onnx/schema.js';
import { splitOnnx } from '../../src/models/onnx/split.js';
import { runCli } from '../support/cli.js';
import {
  bytesOf,
  externalTensor,
  floats,
  graph,
  message,
  model,
  node,
  rawTensor,
  TYPES,
  tensor,
  value,
} from '../support/onnx-model.js';
import { folder, W, x } from '../support/ort-weights.js';

// Models that are broken, or odd: each is a typed error wherever it is taken, or gives what onnxruntime-node gives.

const quiet = { logSeverityLevel: 4 } as const;
const raw = { [TENSOR.rawData]: bytesOf(W) };
const X = value('x', [512]);
const Y = value('y', [512]);
const parts = (w: Parameters<typeof graph>[0]['initializers'], name = 'w') => ({
  nodes: [node('Add', ['x', name], ['y'])],
  initializers: w,
  inputs: [X],
  outputs: [Y],
});
const of = (...w: ReturnType<typeof tensor>[]) => model(parts(w));
const placed = (location: string, entries: Record<string, string> = {}) =>
  of(externalTensor('w', [512], { location, ...entries }));
const good = of(rawTensor('w', [512], W));
const appended = (...bytes: number[]) => Buffer.concat([good, Buffer.from(bytes)]);
const named = (name: string) => model(parts([rawTensor(name, [512], W)], name));
const changed = (at: number, byte: number) => {
  const bytes = Buffer.from(good);
  bytes[at] = byte;
  return bytes;
};

/** Graphs inside each other. */
function nested(depth: number) {
  const inner = () => graph({ nodes: [node('Identity', ['x'], ['r'])], outputs: [value('r', [512])] });
  let then = inner();
  for (let i = 0; i < depth; ++i) {
    const choose = node('If', ['c'], ['r'], { then_branch: { graph: then }, else_branch: { graph: inner() } });
    then = graph({ nodes: [choose], outputs: [value('r', [512])] });
  }
  return model({
    nodes: [
      node('If', ['c'], ['z'], { then_branch: { graph: then }, else_branch: { graph: inner() } }),
      node('Add', ['z', 'w'], ['y']),
    ],
    initializers: [rawTensor('w', [512], W)],
    inputs: [X, value('c', [], TYPES.BOOL)],
    outputs: [Y],
  });
}

const MODELS: Record<string, Uint8Array> = {
  'an empty file': Buffer.alloc(0),
  'one byte': Buffer.of(8),
  'bytes that are all ones': Buffer.alloc(4096, 0xff),
  'room that was never filled': Buffer.alloc(4096),
  'the text form of a model': Buffer.from('ir_version: 8\ngraph {\n}\n'),
  'no graph': message({ 1: 8 }).encode(),
  'no IR version': message({ 7: graph(parts([rawTensor('w', [512], W)])) }).encode(),
  'an IR version of the future': model(parts([rawTensor('w', [512], W)]), 999),
  'a length beyond the end': changed(good.length - graph(parts([rawTensor('w', [512], W)])).encode().length - 1, 0x7f),
  'a record of field 0': appended(0, 0),
  'a group': appended(0x4b, 8, 1, 0x4c),
  'a group without an end': appended(0x4b, 8, 1),
  'a wire type that there is none of': appended(0x4f),
  'graphs in 20 others': nested(20),
  'graphs in 90 others': nested(90),
  'graphs in 400 others': nested(400),
  'negative dimensions': of(tensor('w', [-512], TYPES.F32, raw)),
  'dimensions that are too large together': of(tensor('w', [2 ** 40, 2 ** 40], TYPES.F32, raw)),
  'no elements of an impossible shape': of(tensor('w', [0, 2 ** 53], TYPES.F32, raw)),
  'more elements than data': of(tensor('w', [513], TYPES.F32, raw)),
  'less elements than data': of(tensor('w', [511], TYPES.F32, raw)),
  'data in two fields': of(tensor('w', [512], TYPES.F32, { ...raw, [TENSOR.floatData]: bytesOf(floats(512)) })),
  'no data': of(tensor('w', [512], TYPES.F32, {})),
  'a type of no name': of(tensor('w', [512], 99, raw)),
  'a type of complex numbers': of(tensor('w', [256], 14, raw)),
  'a weight twice': of(rawTensor('w', [512], W), rawTensor('w', [512], floats(512))),
  'a weight whose input has another shape': model({
    ...parts([rawTensor('w', [512], W)]),
    inputs: [X, value('w', [4])],
  }),
  'a weight called __proto__': named('__proto__'),
  'a weight called __metadata__': named('__metadata__'),
  'a weight called as the output': named('y'),
  'a weight called as the input': named('x'),
  'a weight of 70,000 letters': named('w'.repeat(70_000)),
  'an operator that nobody has': model({
    ...parts([rawTensor('w', [512], W)]),
    nodes: [node('No', ['x', 'w'], ['y'])],
  }),
  'a circle': model({
    nodes: [node('Add', ['x', 'b'], ['a']), node('Add', ['a', 'w'], ['b']), node('Identity', ['b'], ['y'])],
    initializers: [rawTensor('w', [512], W)],
    inputs: [X],
    outputs: [Y],
  }),
  'a sparse initializer': (() => {
    const sparse = message({
      1: tensor('w', [512], TYPES.F32, raw),
      2: rawTensor('', [0], new Float32Array(0)),
      3: 512,
    });
    const top = graph({ nodes: [node('Add', ['x', 'w'], ['y'])], inputs: [X], outputs: [Y] });
    top.addMessage(15, sparse);
    return message({ 1: 8, 8: message({ 1: '', 2: 13 }), 7: top }).encode();
  })(),
  'external data without a place': of(tensor('w', [512], TYPES.F32, { [TENSOR.dataLocation]: 1 })),
  'a negative offset': placed('w.bin', { offset: '-1' }),
  'an offset in hex': placed('w.bin', { offset: '0x10' }),
  'an offset beyond the file': placed('w.bin', { offset: '2048' }),
  'an offset of 30 digits': placed('w.bin', { offset: '9'.repeat(30) }),
  'a length that the shape contradicts': placed('w.bin', { length: '4' }),
  'a length beyond the file': placed('w.bin', { length: '4096' }),
  'data in the folder itself': placed('.'),
  'data in a pipe': placed('pipe'),
  'data in a link to itself': placed('loop'),
  'data in a device': placed('null'),
  'data in the model': placed('m.onnx'),
  'data in a name that is too long': placed('w'.repeat(300)),
  'data at a place in memory': placed('*/_ORT_MEM_ADDR_/*', { offset: '4096' }),
};

type Outcome = { found: ArrayLike<number | bigint> } | { refused: unknown };
async function outcome(open: () => Promise<ort.InferenceSession>): Promise<Outcome> {
  let session: ort.InferenceSession | undefined;
  try {
    session = await open();
    const feeds = { x: x(), c: new ort.Tensor('bool', Uint8Array.of(1), []) };
    const own = Object.entries(feeds).filter(([name]) => session!.inputNames.includes(name));
    return { found: (await session.run(Object.fromEntries(own))).y!.data as Float32Array };
  } catch (refused) {
    return { refused };
  } finally {
    await session?.release();
  }
}

function expectTyped(error: unknown) {
  expect(error).toBeInstanceOf(FastSafetensorsError);
  expect((error as Error).message).not.toMatch(/undefined|\[object/);
}

test.each(Object.entries(MODELS))('%s', async (_, bytes) => {
  const path = join(folder, 'm.onnx');
  await writeFile(path, bytes);
  await writeFile(join(folder, 'w.bin'), bytesOf(W));
  await symlink('loop', join(folder, 'loop'));
  await symlink('/dev/null', join(folder, 'null'));
  execFileSync('mkfifo', [join(folder, 'pipe')]);

  // onnxruntime-node itself would wait for a writer.
  const waits = bytes === MODELS['data in a pipe'];
  const theirs = waits ? { refused: 0 } : await outcome(() => ort.InferenceSession.create(path, quiet));
  const ours = await outcome(() => createSession(ort, path, { sessionOptions: quiet }));
  if ('found' in theirs) expect(ours).toEqual(theirs);
  if ('refused' in ours) expectTyped(ours.refused);

  for (const asInputs of [false, true]) {
    const out = join(folder, 'out');
    await mkdir(out, { recursive: true });
    const split = await splitOnnx(path, { out, asInputs }).catch((error) => error);
    if (split instanceof Error) {
      expectTyped(split);
      expect(await readdir(out)).toEqual([]);
      continue;
    }
    await checkOnnxSplit(split);
    const weights = asInputs ? { weights: split.weights } : {};
    const again = await outcome(() => createSession(ort, split.graph, { ...weights, sessionOptions: quiet }));
    if ('found' in theirs) expect(again).toEqual(theirs);
    expect(await readFile(path)).toEqual(Buffer.from(bytes));
    await rm(out, { recursive: true });
  }

  for (const command of ['inspect', 'load', 'split-onnx']) {
    const { stderr, exitCode } = await runCli(command, path);
    if (exitCode !== 0) expect(stderr).toMatch(/^error: [A-Z_]+: .*\n$/);
    if (command !== 'split-onnx') expect(exitCode).toBe(1);
  }
  const { stdout, exitCode } = await runCli('verify', path);
  expect([stdout.split(': ')[1], exitCode]).toEqual([expect.stringMatching(/^[A-Z_]+$/), 1]);
});
