import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import fs, { type FileHandle } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import * as tf from '@tensorflow/tfjs';
import { loadGraphModel, loadLayersModel, safetensorsHandler } from '../../adapters/tfjs/index.js';
import { checkTfjsSplit } from '../../src/models/tfjs/check-split.js';
import { splitTfjs } from '../../src/models/tfjs/split.js';
import { SafeTensorsMetadata } from '../../src/safetensors/metadata.js';
import { collectedMetrics, NOTHING_HELD, testFolder, writeTensors } from '../support/tensor-files.js';
import { fileHandler, packageFile, trainLayersModel, writeGraphModel } from '../support/tf-models.js';

const folder = testFolder();

const models = {
  trained: '',
  'every kind of weight': '',
  'basic-pitch': packageFile('@spotify/basic-pitch/model/model.json'),
  upscaler: packageFile('@upscalerjs/default-model/models/model.json'),
};

beforeAll(async () => {
  jest.spyOn(console, 'warn').mockImplementation(() => {});
  await tf.setBackend('cpu');
  models.trained = await trainLayersModel(tf, join(folder, 'trained'));
  models['every kind of weight'] = writeGraphModel(join(folder, 'kinds'));
});
let before = tf.memory();
beforeEach(() => {
  before = tf.memory();
});
afterEach(async () => {
  const { numTensors, numDataBuffers } = tf.memory(); // not bytes: tfjs miscounts those of strings
  expect({ numTensors, numDataBuffers }).toEqual({
    numTensors: before.numTensors,
    numDataBuffers: before.numDataBuffers,
  });
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});

let outs = 0;
async function split(path: string, options: object = {}) {
  const report = await splitTfjs(path, { out: join(folder, `split${++outs}`), ...options });
  expect(await checkTfjsSplit(report)).toBe(report.bytes);
  return report;
}

type Predictor = { predict(x: tf.Tensor, config?: object): tf.Tensor | tf.Tensor[] | tf.NamedTensorMap };
/** Every output, by name or number. */
function outputs(model: Predictor | tf.InferenceModel, x: tf.Tensor): Record<string, number[]> {
  return tf.tidy(() => {
    const y = (model as Predictor).predict(x);
    const named = y instanceof tf.Tensor ? { y } : (y as Record<string, tf.Tensor>);
    return Object.fromEntries(Object.entries(named).map(([name, t]) => [name, [...t.dataSync()]]));
  });
}

/** tf's own loader on the original files against ours on the split ones: the same bits. */
async function expectSame(original: tf.InferenceModel, ours: tf.InferenceModel, shape: number[]) {
  for (let seed = 1; seed <= 2; ++seed) {
    const x = tf.randomNormal(shape, 0, 1, 'float32', seed);
    const expected = outputs(original, x);
    expect(
      Object.values(expected)
        .flat()
        .some((value) => value !== 0),
    ).toBe(true);
    expect(outputs(ours, x)).toEqual(expected);
    x.dispose();
  }
  (original as tf.GraphModel).dispose();
  (ours as tf.GraphModel).dispose();
}

describe('layers models give the outputs of tf.loadLayersModel', () => {
  test.each([
    ['trained', [3, 8, 8, 3]],
    ['upscaler', [1, 6, 5, 3]],
  ] as const)('%s', async (name, shape) => {
    const { graph } = await split(models[name]);
    const original = await tf.loadLayersModel(fileHandler(models[name]));
    const ours = await loadLayersModel(tf, graph);
    // Initialisers that were skipped are still in the configuration.
    expect(ours.toJSON()).toEqual(original.toJSON());
    await expectSame(original as never, ours as never, [...shape]);
  });

  test('the optimizer’s weights too: training goes on where it stopped', async () => {
    const optimizer = tf.train.adam(0.02);
    const path = await trainLayersModel(tf, join(folder, 'adam'), { optimizer, includeOptimizer: true });
    before = tf.memory(); // fit() keeps some
    const { graph } = await split(path);
    const x = tf.randomNormal([4, 8, 8, 3], 0, 1, 'float32', 3);
    const y = tf.tidy(() => tf.oneHot(tf.tensor1d([0, 1, 2, 3], 'int32'), 4));
    const [expected, found] = await Promise.all(
      [await tf.loadLayersModel(fileHandler(path)), await loadLayersModel(tf, graph)].map(async (model) => {
        const { history } = await model.fit(x, y, { epochs: 2, shuffle: false, verbose: 0 });
        const told = [history.loss, model.getWeights().map((weight) => [...weight.dataSync()])];
        model.dispose();
        return told;
      }),
    );
    expect(found).toEqual(expected);
    tf.dispose([x, y]);
    tf.disposeVariables();
    before = tf.memory();
  });

  test('through the ordinary handler', async () => {
    const { weights, graph } = await split(models.trained);
    const original = await tf.loadLayersModel(fileHandler(models.trained));
    const ours = await tf.loadLayersModel(safetensorsHandler(weights, { model: graph }));
    await expectSame(original as never, ours as never, [2, 8, 8, 3]);
  });
});

describe('graph models give the outputs of tf.loadGraphModel', () => {
  // Its outputs take minutes on the cpu backend; they are compared on tfjs-node (npm run test:tfjs).
  test('basic-pitch: every weight is the same', async () => {
    const { graph } = await split(models['basic-pitch']);
    const original = await tf.loadGraphModel(fileHandler(models['basic-pitch']));
    const ours = await loadGraphModel(tf, graph);
    const told = (model: tf.GraphModel) =>
      Object.entries(model.weights)
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .flatMap(([name, tensors]) => tensors.map((t) => [name, t.dtype, t.shape, t.dataSync()]));
    expect(told(ours)).toEqual(told(original));
    original.dispose();
    ours.dispose();
  });

  test('every kind of weight', async () => {
    const path = models['every kind of weight'];
    const { graph, weights } = await split(path);
    const all = ['y', 'text', 'all'];
    const x = tf.tensor2d([1, -2, 3, 0.5, 0.25, 7], [2, 3]);
    const run = (model: tf.GraphModel) => {
      const results = model.execute(x, all) as tf.Tensor[];
      const values = results.map((t) => [t.dtype, t.shape, [...t.dataSync()]]);
      tf.dispose(results.filter((t) => !t.isDisposed && !t.kept));
      model.dispose();
      return values;
    };
    const expected = run(await tf.loadGraphModel(fileHandler(path)));
    expect(expected[1]).toEqual(['string', [2], ['weights', 'aé']]);
    expect(run(await loadGraphModel(tf, graph))).toEqual(expected);
    expect(run(await tf.loadGraphModel(safetensorsHandler(weights, { model: graph })))).toEqual(expected);
    expect(run(await tf.loadGraphModel(safetensorsHandler(weights, { model: graph, stream: false })))).toEqual(
      expected,
    );
    x.dispose();
  });

  test('the weights are the loader’s memory, kept by the model', async () => {
    const { graph } = await split(models['basic-pitch']);
    const model = await loadGraphModel(tf, graph);
    const held = await collectedMetrics();
    expect(held.hostBytes).toBeGreaterThan(0);
    // All of the model's float weights lie in it: nothing was copied out.
    const bytes = Object.values(model.weights)
      .flat()
      .reduce((sum, t) => sum + (t as tf.Tensor).size * 4, 0);
    expect(held.hostBytes).toBeGreaterThanOrEqual(bytes);
    model.dispose();
  });
});

describe('names and files', () => {
  test('a path as tfjs-node takes it, and a report', async () => {
    const { graph } = await split(models.trained);
    const reports: object[] = [];
    const model = await loadLayersModel(tf, `file://${graph}`, { onReport: (report) => reports.push(report) });
    expect(reports).toEqual([expect.objectContaining({ tensors: 11, files: 1, device: 'cpu', notes: [] })]);
    model.dispose();
  });

  test('weights from any .safetensors, by names that differ', async () => {
    const { weights } = await split(models.trained);
    const renamed = join(folder, 'renamed.safetensors');
    const { name, frames } = await retold(weights, (original) => `model.${original.replaceAll('/', '.')}`);
    await writeTensors(renamed, frames);
    const model = await loadLayersModel(tf, models.trained, { weights: renamed, names: name });
    const original = await tf.loadLayersModel(fileHandler(models.trained));
    await expectSame(original as never, model as never, [1, 8, 8, 3]);
  });

  test('what does not match is listed on either side before anything is loaded', async () => {
    const weights = await writeTensors(join(folder, 'other.safetensors'), {
      'conv.kernel': { dtype: 'F32', shape: [1], data: new Float32Array(1) },
    });
    await expect(loadLayersModel(tf, models.trained, { weights })).rejects.toMatchObject({
      code: 'UNKNOWN_TENSOR',
      message: expect.stringMatching(
        /lack 11 .*11 weights: "conv\/kernel".*not use: "conv\.kernel".*, as \{ "conv\/kernel": "conv\.kernel" \}/,
      ),
    });
  });

  test.each([
    [
      'another shape',
      { dtype: 'F32', shape: [2], data: new Float32Array(2) },
      'TENSOR_INVALID_INFO',
      /\[2\].*"dense\/bias".*\[4\]/,
    ],
    [
      'another dtype',
      { dtype: 'I32', shape: [4], data: new Int32Array(4) },
      'UNSUPPORTED_DTYPE',
      /I32.*"dense\/bias".*float32/,
    ],
  ] as const)('%s is an error that names the weight', async (_, wrong, code, message) => {
    const { weights } = await split(models.trained);
    const { frames } = await retold(weights, (name) => name);
    const files = await writeTensors(join(folder, 'wrong.safetensors'), { ...frames, 'dense/bias': wrong });
    const refused = loadLayersModel(tf, models.trained, { weights: files });
    await expect(refused).rejects.toMatchObject({ code, tensor: 'dense/bias' });
    await expect(refused).rejects.toThrow(message);
  });

  test('a transposed weight is said to look so', async () => {
    const { weights } = await split(models.trained);
    const { frames } = await retold(weights, (name) => name);
    const kernel = { ...frames['dense/kernel']!, shape: [4, 10] };
    const files = await writeTensors(join(folder, 'transposed.safetensors'), { ...frames, 'dense/kernel': kernel });
    await expect(loadLayersModel(tf, models.trained, { weights: files })).rejects.toThrow(/looks transposed/);
  });

  test('half-precision weights of an ordinary model', async () => {
    const { weights } = await split(models.trained);
    const { frames } = await retold(weights, (name) => name);
    const half = Uint16Array.of(0x3c00, 0x3800, 0xbc00, 0);
    const files = await writeTensors(join(folder, 'half.safetensors'), {
      ...frames,
      'dense/bias': { dtype: 'F16', shape: [4], data: half },
    });
    const model = await loadLayersModel(tf, models.trained, { weights: files });
    const [, bias] = model.getLayer('dense').getWeights();
    expect([...bias!.dataSync()]).toEqual([1, 0.5, -1, 0]);
    model.dispose();
    const through = await tf.loadLayersModel(safetensorsHandler(files, { model: models.trained }));
    expect([...through.getLayer('dense').getWeights()[1]!.dataSync()]).toEqual([1, 0.5, -1, 0]);
    through.dispose();
  });

  test('a signal that is aborted', async () => {
    const { graph } = await split(models.trained);
    await expect(loadLayersModel(tf, graph, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      name: 'AbortError',
    });
  });
});

/** The tensors of a file under other names, and the way from the old to the new. */
async function retold(path: string, name: (original: string) => string) {
  const header = await SafeTensorsMetadata.fromFile(path);
  const bytes = readFileSync(path);
  const frames = Object.fromEntries(
    [...header].map(({ name: original, dtype, shape, dataOffsets: [begin, end] }) => {
      const data = bytes.subarray(8 + header.headerLength + begin, 8 + header.headerLength + end);
      return [name(original), { dtype, shape, data }];
    }),
  );
  return { name, frames };
}

describe('split-tfjs', () => {
  test('cuts the weights into files of a size, which load alike', async () => {
    const report = await split(models.trained, { maxShardBytes: 2000, out: join(folder, 'not', 'there', 'yet') });
    expect(report.files.length).toBeGreaterThan(2);
    const original = await tf.loadLayersModel(fileHandler(models.trained));
    await expectSame(original as never, (await loadLayersModel(tf, report.graph)) as never, [1, 8, 8, 3]);
  });

  test('leaves a model.json that plain TensorFlow.js refuses, rather than compute with nothing', async () => {
    const { graph } = await split(models.trained);
    await expect(tf.loadLayersModel(fileHandler(graph))).rejects.toThrow();
    expect(tf.memory().numTensors).toBeGreaterThan(0); // tfjs' own, of its half-made model
    tf.disposeVariables();
    before = tf.memory();
  });

  test('check names the weight that differs', async () => {
    const report = await split(models['every kind of weight']);
    const bytes = readFileSync(report.weights);
    const header = await SafeTensorsMetadata.fromFile(report.weights);
    const at = 8 + header.headerLength + header.get('axis')!.dataOffsets[0];
    bytes[at] = bytes[at]! ^ 1;
    writeFileSync(report.weights, bytes);
    await expect(checkTfjsSplit(report)).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: 'axis' });
  });

  test('check closes the files that it opened when it cannot open them all', async () => {
    const report = await split(models.trained, { maxShardBytes: 2000 });
    const opened: FileHandle[] = [];
    const { open } = fs;
    const spy = jest.spyOn(fs, 'open').mockImplementation(async (path, flags) => {
      if (path === report.files.at(-1)) {
        await setTimeout(20); // the others are open by now
        throw new Error('no descriptor is left');
      }
      opened.push(await open(path, flags));
      return opened.at(-1)!;
    });
    await expect(checkTfjsSplit(report)).rejects.toThrow('no descriptor is left');
    spy.mockRestore();
    expect(opened.length).toBeGreaterThan(0);
    expect(opened.map(({ fd }) => fd)).toEqual(opened.map(() => -1));
  });

  test('does not overwrite weights that it did not write', async () => {
    const out = join(folder, 'mine');
    const { weights } = await split(models.trained, { out });
    await split(models.trained, { out }); // its own it may
    await writeTensors(weights, { mine: { dtype: 'F32', shape: [1], data: Float32Array.of(1) } });
    await expect(splitTfjs(models.trained, { out })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', path: weights });
    expect((await SafeTensorsMetadata.fromFile(weights)).keys()).toEqual(['mine']);
  });

  const broken = (change: (json: Record<string, never>) => void) => {
    const path = join(dirname(models.trained), `broken${++outs}.json`);
    const json = JSON.parse(readFileSync(models.trained, 'utf8'));
    change(json);
    writeFileSync(path, JSON.stringify(json));
    return splitTfjs(path, { out: join(folder, 'broken') });
  };
  // biome-ignore lint/suspicious/noExplicitAny: JSON to be broken
  test.each<[string, (json: any) => void, object]>([
    ['a shard that is missing', (json) => json.weightsManifest[0].paths.push('no.bin'), { code: 'MISSING_SHARD' }],
    ['a shard outside the folder', (json) => json.weightsManifest[0].paths.push('../x'), { code: 'UNSAFE_SHARD_PATH' }],
    ['shards that are too short', (json) => json.weightsManifest[0].paths.pop(), { code: 'UNEXPECTED_EOF' }],
    [
      'shards that are too long',
      (json) => json.weightsManifest[0].weights.pop(),
      { code: 'METADATA_INCOMPLETE_BUFFER' },
    ],
    [
      'a dtype that there is not',
      (json) => (json.weightsManifest[0].weights[0].dtype = 'int64'),
      { code: 'INVALID_INDEX' },
    ],
    ['a shape that is none', (json) => (json.weightsManifest[0].weights[0].shape = [-1]), { code: 'INVALID_INDEX' }],
    [
      'a name that is there twice',
      (json) => (json.weightsManifest[0].weights[1].name = json.weightsManifest[0].weights[0].name),
      { code: 'DUPLICATE_TENSOR' },
    ],
    ['no topology', (json) => delete json.modelTopology, { code: 'INVALID_INDEX' }],
  ])('refuses %s', async (_, change, error) => {
    await expect(broken(change)).rejects.toMatchObject(error);
  });
});

describe('misuse', () => {
  test.each([
    ['a URL', () => loadGraphModel(tf, 'https://example.com/model.json', { weights: 'x' })],
    ['no weights', () => loadLayersModel(tf, models.trained)],
    ['a report to nobody', () => loadLayersModel(tf, models.trained, { weights: 'x', onReport: 7 as never })],
    ['a tf without serialization', () => loadLayersModel({ ...tf, serialization: undefined } as never, models.trained)],
    ['names that are none', () => loadLayersModel(tf, models.trained, { weights: 'x', names: 7 as never })],
    ['an option that there is not', () => loadLayersModel(tf, models.trained, { weights: 'x', framwork: 1 } as never)],
    ['a tf that cannot load models', () => loadGraphModel({ ...tf, loadGraphModel: undefined } as never, 'x')],
  ])('%s is INVALID_ARGUMENT', async (_, call) => {
    await expect(call()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test.each([
    [{ weight: 'x' }, '; did you mean "weights"?'],
    [{ nmaes: {} }, '; did you mean "names"?'],
    [{ onReprot: () => {} }, '; did you mean "onReport"?'],
    [{ dtype: 'F16' }, ' here: it is one of loaders, which the model decides itself'],
  ])('the option %j is named before anything is read', async (options, right) => {
    const message = `there is no option "${Object.keys(options)[0]}"${right}`;
    for (const load of [loadGraphModel, loadLayersModel]) {
      await expect(load(tf, 'no such file', options as never)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message,
      });
    }
  });

  test('a model for the other function names that function', async () => {
    const { graph: layers } = await split(models.trained);
    await expect(loadGraphModel(tf, layers)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/^loadGraphModel: .* is a layers-model .* load it with loadLayersModel$/),
    });
    const { graph } = await split(models['every kind of weight']);
    await expect(loadLayersModel(tf, graph)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/^loadLayersModel: .* is a graph-model .* load it with loadGraphModel$/),
    });
  });

  test('a folder stands for the model.json in it', async () => {
    const out = join(folder, 'by-folder');
    const { graph, weights } = await split(models.trained, { out });
    const load = async (options = {}) => (await loadLayersModel(tf, out, options)).dispose();
    await load(); // what split-tfjs made
    renameSync(graph, join(out, 'model.json'));
    await load();
    rmSync(join(out, 'model.json'));
    const missing = { code: 'IO_ERROR', path: join(out, 'model.json') };
    await expect(load({ weights })).rejects.toMatchObject(missing);
  });

  test('a tfjs whose loadGraphModel does not let weights in', async () => {
    const { graph } = await split(models['every kind of weight']);
    const old = { ...tf, loadGraphModel: (handler: tf.io.IOHandler) => tf.loadGraphModel(handler) };
    await expect(loadGraphModel(old, graph)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
