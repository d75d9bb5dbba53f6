/** @jest-environment ./test/support/native-arrays-environment.js */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession, type OrtDeviceBuffer } from '../../adapters/ort/index.js';
import { MODELS } from '../../demo/models.js';
import { nativeMetrics, SafeTensorsFileLoader } from '../../src/index.js';
import { splitOnnx } from '../../src/models/onnx/split.js';
import { native } from '../../src/native/addon.js';
import { type AddModel, writeAddModel } from '../support/add-model.js';
import { writeBigModel } from '../support/big-onnx.js';
import { runChild } from '../support/child.js';
import { floats } from '../support/onnx-model.js';
import { testFolder } from '../support/tensor-files.js';

// Sessions of ONNX Runtime's own CUDA provider on weights in GPU memory; skipped where onnxruntime-node has no such
// provider, which it says.

const folder = testFolder();
const device = 'cuda:0';
const quiet = { logSeverityLevel: 3 } as const;
/** A GPU sums in another order and, in convolutions and products, with TF32: 10 bits of mantissa. */
const RELATIVE = 2e-2;

type Outputs = ort.InferenceSession.ReturnType;

/** The largest difference of two runs, in parts of the largest value of its output. */
function difference(found: Outputs, expected: Outputs): number {
  let worst = 0;
  for (const [name, { data }] of Object.entries(expected)) {
    const a = found[name]!.data as Float32Array;
    const b = data as Float32Array;
    if (a.length !== b.length) return Number.POSITIVE_INFINITY;
    let most = 1e-6;
    let largest = 0;
    for (let i = 0; i < b.length; ++i) {
      const distance = Math.abs(a[i]! - b[i]!);
      most = Math.max(most, Math.abs(b[i]!));
      largest = Number.isNaN(distance) ? Number.POSITIVE_INFINITY : Math.max(largest, distance);
    }
    worst = Math.max(worst, largest / most);
  }
  return worst;
}

const feedsOf = (source: (typeof MODELS)[number], seed: number): Record<string, ort.Tensor> =>
  Object.fromEntries(
    Object.entries(source.feeds(seed)).map(([name, { type, data, dims }]) => [
      name,
      new ort.Tensor(type as 'float32', data as Float32Array, dims),
    ]),
  );

/** The provider's library that onnxruntime-node lacks, if any. */
const library = dirname(native().ortLibrary(2).path);
const missing = ['shared', 'cuda']
  .map((name) => join(library, `libonnxruntime_providers_${name}.so`))
  .find((path) => !existsSync(path));
if (missing) console.warn(`skipped: ${missing} is not there (npm rebuild onnxruntime-node)`);
const suite = missing ? describe.skip : describe;

suite.each(MODELS)('$name', (source) => {
  test('gives the outputs of the CPU, with its weights inside, pointing at them and taking them', async () => {
    const out = join(folder, source.name.replaceAll(' ', '-'));
    const pointing = await splitOnnx(source.file, { out });
    const taking = source.modes.includes('inputs')
      ? await splitOnnx(source.file, { out: `${out}-inputs`, asInputs: true })
      : undefined;
    const cpu = await ort.InferenceSession.create(source.file, quiet);
    const plain = await ort.InferenceSession.create(source.file, { executionProviders: ['cuda'], ...quiet });
    const loader = new SafeTensorsFileLoader({ device });
    await loader.addFilenames(pointing.weights);
    const buffer = await loader.copyFilesToDevice();
    await loader.close();
    const { deviceBytes } = nativeMetrics();
    const sessions: [string, { run(feeds: Record<string, ort.Tensor>): Promise<Outputs>; release(): Promise<void> }][] =
      [
        [
          'weights on the GPU',
          await createSession(ort, pointing.graph, { device, weights: buffer, sessionOptions: quiet }),
        ],
        [
          'the same weights again',
          await createSession(ort, pointing.graph, { device, weights: buffer, sessionOptions: quiet }),
        ],
        [
          'a file',
          await createSession(ort, pointing.graph, { device, weights: pointing.weights, sessionOptions: quiet }),
        ],
        ['weights inside', await createSession(ort, source.file, { device, sessionOptions: quiet })],
      ];
    if (taking)
      sessions.push([
        'weights as inputs',
        await createSession(ort, taking.graph, { device, weights: taking.weights, sessionOptions: quiet }),
      ]);
    expect(deviceBytes).toBeGreaterThan(0);
    const said: Record<string, number> = {};
    for (let seed = 1; seed <= 10; ++seed) {
      const feeds = feedsOf(source, seed);
      const expected = await cpu.run(feeds);
      const theirs = difference(await plain.run(feeds), expected);
      said["onnxruntime's own"] = Math.max(said["onnxruntime's own"] ?? 0, theirs);
      for (const [route, session] of sessions) {
        const ours = difference(await session.run(feeds), expected);
        said[route] = Math.max(said[route] ?? 0, ours);
        expect({ route, seed, ours, theirs, near: ours <= Math.max(RELATIVE, 2 * theirs) }).toMatchObject({
          near: true,
        });
      }
    }
    console.log(source.name, JSON.stringify(said));
    for (const [, session] of sessions) await session.release();
    await Promise.all([cpu.release(), plain.release(), buffer.close()]);
  });
});

(missing ? test.skip : test)('one set of weights of 1 GiB serves two sessions, and the GPU holds it once', async () => {
  const { graph, weights, bytes } = await writeBigModel(join(folder, 'big'), 16, 4096);
  const used = () =>
    2 ** 20 *
    Number(
      execFileSync('nvidia-smi', ['--query-gpu=memory.used', '--format=csv,noheader,nounits', '-i', '0'], {
        encoding: 'utf8',
      }),
    );
  const x = new ort.Tensor('float32', new Float32Array(4096).fill(0.01), [1, 4096]);
  const warm = await createSession(ort, MODELS[0]!.file, { device, sessionOptions: quiet });
  await warm.run(feedsOf(MODELS[0]!, 1));

  // Sessions have memory of their own beside the weights, for cuBLAS and cuDNN: that of a small model's is not counted.
  const little = await writeBigModel(join(folder, 'little'), 16, 64);
  const start = used();
  const small = [1, 2].map(() =>
    createSession(ort, little.graph, { device, weights: little.weights, sessionOptions: quiet }),
  );
  for (const session of await Promise.all(small))
    await session.run({ x: new ort.Tensor('float32', new Float32Array(64).fill(0.01), [1, 64]) });
  const overhead = used() - start;
  for (const session of await Promise.all(small)) await session.release();

  const before = used();
  const loader = new SafeTensorsFileLoader({ device });
  await loader.addFilenames(weights);
  const buffer = await loader.copyFilesToDevice();
  await loader.close();
  const loaded = used() - before;
  const first = await createSession(ort, graph, { device, weights: buffer, sessionOptions: quiet });
  const one = await first.run({ x });
  const second = await createSession(ort, graph, { device, weights: buffer, sessionOptions: quiet });
  const two = await second.run({ x });
  const ours = used() - before;
  await first.release();
  const still = await second.run({ x });
  expect(two.y!.data).toEqual(one.y!.data);
  expect(still.y!.data).toEqual(two.y!.data);
  await second.release();
  await buffer.close();
  const freed = used() - before;

  const create = () => ort.InferenceSession.create(graph, { executionProviders: ['cuda'], ...quiet });
  const theirSessions = [await create(), await create()];
  const theirs = await theirSessions[0]!.run({ x });
  const theirBytes = used() - before - freed;
  for (const session of theirSessions) await session.release();
  const percent = (figure: number) => Math.round((100 * figure) / bytes);
  console.log('GPU memory in % of the weights:', {
    loaded: percent(loaded),
    'two sessions of a small model': percent(overhead),
    'two sessions on one set': percent(ours),
    'after their end': percent(freed),
    "two sessions of onnxruntime's own": percent(theirBytes),
  });
  expect(difference({ y: one.y! }, { y: theirs.y! })).toBeLessThan(RELATIVE);
  expect(percent(ours - overhead)).toBeLessThanOrEqual(110);
  expect(percent(freed)).toBeLessThanOrEqual(15);
  expect(percent(theirBytes - overhead)).toBeGreaterThan(180); // the measurement sees copies
  await warm.release();
});

suite('values on the GPU', () => {
  let files: AddModel;
  beforeAll(async () => {
    files = await writeAddModel(folder);
  });

  test('outputs stay there and can be fed again', async () => {
    const session = await createSession(ort, files.graph, {
      device,
      weights: files.weights,
      sessionOptions: { preferredOutputLocation: 'gpu-buffer', ...quiet },
    });
    const x = new ort.Tensor('float32', new Float32Array(512).fill(1), [512]);
    const { y } = (await session.run({ x })) as { y: ort.Tensor };
    expect((y.gpuBuffer as unknown as OrtDeviceBuffer).device).toBe(device);
    const twice = (await session.run({ x: y })) as { y: ort.Tensor };
    expect(await twice.y.getData()).toEqual(floats(512, 0.5).map((w) => 1 + 2 * w));
    y.dispose();
    twice.y.dispose();
    await session.release();
  });

  test.each(['computes', 'shared', 'randomOrders', 'workers', 'naturalEnd'])('%s', async (scenario) => {
    const ended = await runChild(
      'adapters/ort-cuda-emulated.child.cjs',
      [scenario, 'real', files.graph, files.weights],
      {
        flags: ['--expose-gc'],
        timeoutMs: 120_000,
      },
    );
    expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
  });
});
