/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { FastSafetensorsError } from '../../src/base/errors.js';
import { checkOnnxSplit } from '../../src/models/onnx/check-split.js';
import { type OnnxSplitReport, splitOnnx } from '../../src/models/onnx/split.js';
import { DTYPE_MODELS } from '../support/generated-dtypes.js';
import { GRAPH_MODELS } from '../support/generated-graphs.js';

const GENERATED_MODELS = [...DTYPE_MODELS, ...GRAPH_MODELS];

// Bit for bit what onnxruntime-node gives, before and after split-onnx; an error of ours where it fails as well.

const quiet = { logSeverityLevel: 4 } as const;
type Outputs = ort.InferenceSession.ReturnType;
interface Session {
  run(feeds: Record<string, ort.Tensor>): Promise<Outputs>;
  release(): Promise<void>;
}

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'generated-'));
});
afterEach(() => rm(folder, { recursive: true }));

const SEEDS = [1, 2, 3];

function bitsOf(outputs: Outputs): string[] {
  return Object.entries(outputs).map(([name, { type, dims, data }]) => {
    const bytes = Array.isArray(data)
      ? JSON.stringify(data)
      : Buffer.from(
          (data as Float32Array).buffer,
          (data as Float32Array).byteOffset,
          (data as Float32Array).byteLength,
        );
    return `${name} ${type} [${dims}] ${bytes.toString('base64' as never)}`;
  });
}

async function outputsOf(session: Session, feeds: (seed: number) => Record<string, ort.Tensor>) {
  try {
    const found: string[][] = [];
    for (const seed of SEEDS) found.push(bitsOf(await session.run(feeds(seed))));
    return found;
  } finally {
    await session.release();
  }
}

/** How a split model is opened. */
function waysOf(split: OnnxSplitReport, taking: OnnxSplitReport): Record<string, () => Promise<Session>> {
  const { graph, weights } = split;
  return {
    'split, onnxruntime-node': () => ort.InferenceSession.create(graph, quiet),
    'split, path': () => createSession(ort, graph, { sessionOptions: quiet }),
    'split, path and weights': () => createSession(ort, graph, { weights, sessionOptions: quiet }),
    'split, bytes and weights': async () =>
      createSession(ort, await readFile(graph), { weights, sessionOptions: quiet }),
    'split, weights that were inputs': () =>
      createSession(ort, taking.graph, { weights: taking.weights, sessionOptions: quiet }),
  };
}

test('there are at least forty, none twice', () => {
  expect(GENERATED_MODELS.length).toBeGreaterThanOrEqual(40);
  expect(new Set(GENERATED_MODELS.map(({ name }) => name)).size).toBe(GENERATED_MODELS.length);
});

test.each(GENERATED_MODELS)('$name', async ({ write, writeWithoutLinks, feeds, lifts = true, fails = false }) => {
  const path = write(folder);
  const feed = (seed: number) => feeds(ort, seed);
  const plain = (model: string) =>
    ort.InferenceSession.create(model, quiet).then((session) => outputsOf(session, feed));
  if (writeWithoutLinks) {
    await expect(plain(path)).rejects.toThrow();
    const strict = createSession(ort, path, { followLinks: false, sessionOptions: quiet });
    await expect(strict).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH' });
  }
  const reference = plain(writeWithoutLinks ? writeWithoutLinks(join(folder, 'without')) : path);
  const ours = () => createSession(ort, path, { sessionOptions: quiet }).then((session) => outputsOf(session, feed));
  if (fails) {
    await expect(reference).rejects.toThrow();
    await expect(ours()).rejects.toBeInstanceOf(FastSafetensorsError);
    return;
  }
  const expected = await reference;
  expect(new Set(expected.map(String)).size).toBeGreaterThan(1); // inputs that all give the same would show nothing
  expect(await ours()).toEqual(expected);

  await mkdir(join(folder, 'out'));
  const [out, inputs] = [join(folder, 'out'), join(folder, 'inputs')];
  if (!lifts) {
    await expect(splitOnnx(path, { out })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    return;
  }
  const split = await splitOnnx(path, { out });
  const taking = await splitOnnx(path, { out: inputs, asInputs: true });
  await checkOnnxSplit(split);
  await checkOnnxSplit(taking);
  for (const [way, open] of Object.entries(waysOf(split, taking))) {
    expect({ way, found: await outputsOf(await open(), feed) }).toEqual({ way, found: expected });
  }
});
