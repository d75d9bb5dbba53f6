import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { loadGraphModel, loadLayersModel, safetensorsHandler } from '../../adapters/tfjs/index.js';
import { splitTfjs } from '../../src/models/tfjs/split.js';
import { collectedMetrics, NOTHING_HELD, testFolder, writeTensors } from '../support/tensor-files.js';
import { writeModel } from '../support/tf-models.js';

/** A model.json by somebody who means ill, or by a broken tool: a typed error, soon, and nothing left behind. */
const folder = testFolder();
let weights = '';

beforeAll(async () => {
  jest.spyOn(console, 'warn').mockImplementation(() => {});
  await tf.setBackend('cpu');
  weights = await writeTensors(join(folder, 'w.safetensors'), {
    w: { dtype: 'U8', shape: [2], data: Uint8Array.of(1, 2) },
    f: { dtype: 'F32', shape: [2], data: Float32Array.of(1, 2) },
    one: { dtype: 'F32', shape: [1], data: Float32Array.of(4) },
  });
});
afterEach(async () => {
  expect(tf.memory()).toMatchObject({ numTensors: 0, numDataBuffers: 0 });
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});

let files = 0;
function model(text: string | object): string {
  const path = join(folder, `${++files}.json`);
  writeFileSync(path, typeof text === 'string' ? text : JSON.stringify(text));
  return path;
}
const topology = { node: [], versions: { producer: 1 } };
const listing = (...specs: unknown[]) => ({
  modelTopology: topology,
  weightsManifest: [{ paths: ['x.bin'], weights: specs }],
});
const float = { shape: [2], dtype: 'float32' };

describe('a model.json', () => {
  test.each<[string, string | object, string]>([
    ['that is empty', '', 'INVALID_INDEX'],
    ['that is no JSON', '{"modelTopology":', 'INVALID_INDEX'],
    ['that is null', 'null', 'INVALID_INDEX'],
    ['that is an array', '[]', 'INVALID_INDEX'],
    ['that is binary', '\u0000\u0001\uffff', 'INVALID_INDEX'],
    ['whose topology is a string', { modelTopology: 'x' }, 'INVALID_INDEX'],
    ['whose manifest is an object', { modelTopology: topology, weightsManifest: {} }, 'INVALID_INDEX'],
    ['whose groups are null', { modelTopology: topology, weightsManifest: [null] }, 'INVALID_INDEX'],
    [
      'whose paths are numbers',
      { modelTopology: topology, weightsManifest: [{ paths: [1], weights: [] }] },
      'INVALID_INDEX',
    ],
    ['whose weights are null', listing(null), 'INVALID_INDEX'],
    ['with a weight without a name', listing(float), 'INVALID_INDEX'],
    [
      'with a name that tf loses',
      '{"modelTopology":{"node":[]},"weightsManifest":' +
        '[{"paths":[],"weights":[{"name":"__proto__","shape":[1],"dtype":"float32"}]}]}',
      'INVALID_INDEX',
    ],
    ['with a name that is a number', listing({ ...float, name: 7 }), 'INVALID_INDEX'],
    ['with half an element', listing({ ...float, name: 'f', shape: [0.5] }), 'INVALID_INDEX'],
    ['with a shape of strings', listing({ ...float, name: 'f', shape: ['2'] }), 'INVALID_INDEX'],
    ['with a shape beyond counting', listing({ ...float, name: 'f', shape: [1e300] }), 'INVALID_INDEX'],
    ['with a dtype from Object', listing({ ...float, name: 'f', dtype: 'constructor' }), 'INVALID_INDEX'],
    [
      'with an unknown quantization',
      listing({ ...float, name: 'f', quantization: { dtype: 'uint4' } }),
      'INVALID_INDEX',
    ],
    [
      'with a quantization without a scale',
      listing({ ...float, name: 'w', quantization: { dtype: 'uint8' } }),
      'INVALID_INDEX',
    ],
    [
      'with quantized bools',
      listing({ ...float, name: 'w', dtype: 'bool', quantization: { dtype: 'uint8', scale: 1, min: 0 } }),
      'INVALID_INDEX',
    ],
    ['with a weight twice', listing({ ...float, name: 'f' }, { ...float, name: 'f' }), 'DUPLICATE_TENSOR'],
    [
      'with a shape that is too large',
      listing({ ...float, name: 'f', shape: [2 ** 52, 2 ** 52] }),
      'TENSOR_INVALID_INFO',
    ],
    [
      'with a shape that overflows to nothing',
      listing({ ...float, name: 'f', shape: [...Array(30).fill(2 ** 52), 0] }),
      'TENSOR_INVALID_INFO',
    ],
    [
      'whose weights are elsewhere',
      { modelTopology: topology, fastsafetensors: { weights: '../w.safetensors' } },
      'UNSAFE_SHARD_PATH',
    ],
    [
      'whose weights are at the root',
      { modelTopology: topology, fastsafetensors: { weights: '/etc/passwd' } },
      'UNSAFE_SHARD_PATH',
    ],
    [
      'whose weights are a URL',
      { modelTopology: topology, fastsafetensors: { weights: 'https://x/y' } },
      'UNSAFE_SHARD_PATH',
    ],
    ['whose weights are a number', { modelTopology: topology, fastsafetensors: { weights: 7 } }, 'INVALID_INDEX'],
  ])('%s', async (_, text, code) => {
    const options = code === 'UNSAFE_SHARD_PATH' ? {} : { weights };
    await expect(loadGraphModel(tf, model(text), options)).rejects.toMatchObject({ code });
    await expect(loadLayersModel(tf, model(text), options)).rejects.toMatchObject({ code });
  });

  test('that is a folder without one, or is not there', async () => {
    const path = join(folder, 'model.json');
    await expect(loadGraphModel(tf, folder, { weights })).rejects.toMatchObject({ code: 'IO_ERROR', path });
    await expect(loadGraphModel(tf, join(folder, 'no.json'), { weights })).rejects.toMatchObject({ code: 'IO_ERROR' });
  });

  test('with a hundred thousand weights that are not there: five are named', async () => {
    const specs = Array.from({ length: 100_000 }, (_, i) => ({ ...float, name: `layer.${i}` }));
    const refused = loadGraphModel(tf, model(listing(...specs)), { weights });
    await expect(refused).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
    await expect(refused).rejects.toThrow(
      /lack 100000 of the model's 100000 weights: "layer\.0".{0,200}and 99995 more/,
    );
  });

  test('of a layers model nested deeper than a stack', async () => {
    const depth = 200_000;
    const deep = `{"modelTopology":{"a":${'['.repeat(depth)}${']'.repeat(depth)}},"weightsManifest":[]}`;
    await expect(loadLayersModel(tf, model(deep), { weights })).rejects.toMatchObject({ code: 'INVALID_INDEX' });
  });
});

test('weights named like what every object has', async () => {
  const names = ['constructor', 'toString', 'hasOwnProperty'];
  const graph = {
    format: 'graph-model',
    modelTopology: {
      node: names.map((name) => ({ name, op: 'Const', attr: { dtype: { type: 'DT_FLOAT' } } })),
      versions: { producer: 1 },
    },
    weightsManifest: [{ paths: [], weights: names.map((name) => ({ name, shape: [1], dtype: 'float32' })) }],
  };
  const loaded = await loadGraphModel(tf, graph, { weights, names: () => 'one' });
  expect(Object.keys(loaded.weights).sort()).toEqual([...names].sort());
  loaded.dispose();
});

describe('names', () => {
  const graph = (...specs: object[]) => ({ ...listing(...specs), format: 'graph-model' });

  test.each([
    ['a function that returns nothing', () => undefined],
    ['an object of numbers', { a: 1 }],
  ])('%s', async (_, names) => {
    await expect(
      loadGraphModel(tf, graph({ ...float, name: 'a' }), { weights, names: names as never }),
    ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('"a"') });
  });

  test('a function that throws: its own error', async () => {
    const names = () => {
      throw new RangeError('mine');
    };
    await expect(loadGraphModel(tf, graph({ ...float, name: 'a' }), { weights, names })).rejects.toThrow('mine');
  });

  test('are not looked up in Object', async () => {
    await expect(
      loadGraphModel(tf, graph({ ...float, name: 'toString' }), { weights, names: {} }),
    ).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: 'toString' });
  });

  test('two weights of one tensor, read in different ways, are refused: they share memory', async () => {
    const quantized = (scale: number) => ({ ...float, quantization: { dtype: 'uint8', scale, min: 0 } });
    const pairs = [
      [
        { ...quantized(0.1), name: 'a' },
        { ...quantized(0.2), name: 'b' },
      ],
      [
        { ...quantized(0.1), name: 'a' },
        { name: 'b', shape: [2], dtype: 'int32' },
      ],
      [
        { name: 'a', shape: [0], dtype: 'string' },
        { name: 'b', shape: [2], dtype: 'int32' },
      ],
    ];
    for (const pair of pairs) {
      await expect(loadGraphModel(tf, graph(...pair), { weights, names: () => 'w' })).rejects.toMatchObject({
        code: 'UNSUPPORTED_DTYPE',
        message: expect.stringMatching(/"a" and "b" share/),
      });
    }
  });
});

test.each([
  ['uint8', 'U16'],
  ['uint16', 'U8'],
] as const)(
  'an int32 weight quantized as %s, and a file that has it as %s: never the quantized numbers',
  async (dtype, stored) => {
    const quantization = { dtype, scale: 2, min: 1 };
    const quantized = await writeTensors(join(folder, `${dtype}.safetensors`), {
      q: { dtype: stored, shape: [2], data: stored === 'U8' ? Uint8Array.of(1, 2) : Uint16Array.of(1, 2) },
    });
    const json = { ...listing({ name: 'q', shape: [2], dtype: 'int32', quantization }), format: 'graph-model' };
    const refused = {
      code: 'UNSUPPORTED_DTYPE',
      tensor: 'q',
      message: expect.stringMatching(new RegExp(`is ${stored} \\[2\\].*"q".*int32, quantized as ${dtype}`)),
    };
    await expect(loadGraphModel(tf, json, { weights: quantized })).rejects.toMatchObject(refused);
    await expect(safetensorsHandler(quantized, { model: json }).load()).rejects.toMatchObject(refused);
  },
);

describe('split-tfjs', () => {
  const shards = (paths: string[], ...specs: object[]) => {
    const path = model({ modelTopology: topology, weightsManifest: [{ paths, weights: specs }] });
    return splitTfjs(path, { out: join(folder, `out${files}`) });
  };
  const spec = { ...float, name: 'f' };

  test.each([
    ['/etc/passwd'],
    ['../outside.bin'],
    ['a/../../outside.bin'],
    ['file:///etc/passwd'],
    ['C:\\x.bin'],
    ['a\\..\\..\\x.bin'],
    ['x\u0000.bin'],
    [''],
  ])('does not read the shard %j', async (path) => {
    await expect(shards([path], spec)).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH' });
  });

  test('a shard that is a folder, a link to nothing, or not there', async () => {
    mkdirSync(join(folder, 'shard.bin'));
    symlinkSync('nowhere', join(folder, 'dangling.bin'));
    await expect(shards(['shard.bin'], spec)).rejects.toMatchObject({ code: 'MISSING_SHARD' });
    await expect(shards(['dangling.bin'], spec)).rejects.toMatchObject({ code: 'MISSING_SHARD' });
    await expect(shards(['none.bin'], spec)).rejects.toMatchObject({ code: 'MISSING_SHARD' });
  });

  test.each([
    ['a shape that is larger than any file', { ...spec, shape: [2 ** 52, 2 ** 52] }, 'UNEXPECTED_EOF'],
    ['a shape that overflows to nothing', { ...spec, shape: [...Array(30).fill(2 ** 52), 0] }, 'TENSOR_INVALID_INFO'],
    ['strings longer than the shard', { ...spec, dtype: 'string' }, 'UNEXPECTED_EOF'],
    ['more strings than bytes', { ...spec, dtype: 'string', shape: [2 ** 52] }, 'UNEXPECTED_EOF'],
    ['a name that the format keeps for itself', { ...spec, name: '__metadata__' }, 'INVALID_ARGUMENT'],
  ])('%s', async (_, wrong, code) => {
    writeFileSync(join(folder, 'data.bin'), Buffer.from([255, 255, 255, 255, 0, 0, 0, 0]));
    await expect(shards(['data.bin'], wrong)).rejects.toMatchObject({ code });
  });

  test('a model of nothing but empty weights', async () => {
    const path = writeModel(join(folder, 'empty'), {
      modelTopology: topology as never,
      weightSpecs: [{ name: 'none', shape: [0, 7], dtype: 'float32' }],
      weightData: new ArrayBuffer(0),
    });
    const report = await splitTfjs(path);
    expect([report.tensors, report.bytes]).toEqual([1, 0]);
  });
});
