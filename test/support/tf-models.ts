import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type * as TF from '@tensorflow/tfjs';

type Tf = typeof TF;
/** The weights' bytes, in one piece. */
type Artifacts = Omit<TF.io.ModelArtifacts, 'weightData'> & {
  weightData: ArrayBuffer;
  weightSpecs: TF.io.WeightsManifestEntry[];
};

/** A file of a development dependency, also of one whose package.json does not export it. */
export function packageFile(path: string): string {
  return join(dirname(require.resolve('@tensorflow/tfjs/package.json')), '..', '..', path);
}

/** Writes a model as `tf.io` does: model.json, and its weights in shards of at most `shardBytes`. */
export function writeModel(folder: string, artifacts: Artifacts, shardBytes = 4 * 1024 * 1024): string {
  mkdirSync(folder, { recursive: true });
  const { weightData, weightSpecs, ...rest } = artifacts;
  const paths: string[] = [];
  for (let at = 0; at < weightData.byteLength || at === 0; at += shardBytes) {
    const name = `group1-shard${paths.length + 1}.bin`;
    writeFileSync(join(folder, name), new Uint8Array((weightData as ArrayBuffer).slice(at, at + shardBytes)));
    paths.push(name);
  }
  const path = join(folder, 'model.json');
  writeFileSync(path, JSON.stringify({ ...rest, weightsManifest: [{ paths, weights: weightSpecs }] }));
  return path;
}

/** The original files for tf's own loaders: the cpu backend's tfjs has no handler for files. */
export function fileHandler(path: string): TF.io.IOHandler {
  return {
    load: async () => {
      const { weightsManifest, ...json } = JSON.parse(readFileSync(path, 'utf8'));
      const shards = weightsManifest.flatMap((group: { paths: string[] }) => group.paths);
      const bytes = Buffer.concat(shards.map((name: string) => readFileSync(join(dirname(path), name))));
      const weightData = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
      const weightSpecs = weightsManifest.flatMap((group: { weights: object[] }) => group.weights);
      return { ...json, weightData, weightSpecs };
    },
  };
}

/**
 * Dense, convolution, batch normalisation and LSTM, trained for some steps, so that no weight is what it was
 * initialised with.
 */
export async function trainLayersModel(
  tf: Tf,
  folder: string,
  {
    optimizer = tf.train.sgd(0.1),
    includeOptimizer = false,
  }: { optimizer?: TF.Optimizer; includeOptimizer?: boolean } = {},
): Promise<string> {
  const { layers } = tf;
  const input = tf.input({ shape: [8, 8, 3] });
  const conv = layers.conv2d({ filters: 6, kernelSize: 3, name: 'conv' }).apply(input);
  const norm = layers.batchNormalization({ name: 'norm' }).apply(conv);
  const rows = layers.reshape({ targetShape: [6, 36] }).apply(norm);
  const lstm = layers.lstm({ units: 10, name: 'lstm', recurrentInitializer: 'orthogonal' }).apply(rows);
  const dense = layers.dense({ units: 4, activation: 'softmax', name: 'dense' }).apply(lstm);
  const model = tf.model({ inputs: input, outputs: dense as TF.SymbolicTensor });
  model.compile({ optimizer, loss: 'categoricalCrossentropy' });
  const x = tf.randomNormal([8, 8, 8, 3], 1, 2, 'float32', 7);
  const y = tf.oneHot(tf.tensor1d([0, 1, 2, 3, 0, 1, 2, 3], 'int32'), 4);
  await model.fit(x, y, { epochs: 2, verbose: 0 });
  let path = '';
  await model.save(
    tf.io.withSaveHandler(async (artifacts) => {
      path = writeModel(folder, artifacts as Artifacts, 700); // several shards, cut inside weights
      return { modelArtifactsInfo: { dateSaved: new Date(), modelTopologyType: 'JSON' } };
    }),
    { includeOptimizer },
  );
  tf.dispose([x, y]);
  model.dispose();
  optimizer.dispose();
  tf.disposeVariables();
  return path;
}

const attr = {
  float: { T: { type: 'DT_FLOAT' } },
  dtype: (type: string) => ({ dtype: { type } }),
};

/**
 * A graph model with a weight of each kind that TensorFlow.js stores: float32, int32, bool, string, and uint8, uint16
 * and float16 quantization. y = relu(x * w + b8) * s16 + half, where a bool chooses and an int32 gives an axis; the
 * strings are an output of their own.
 */
export function writeGraphModel(folder: string): string {
  const specs: TF.io.WeightsManifestEntry[] = [
    { name: 'w', shape: [3, 4], dtype: 'float32' },
    { name: 'b8', shape: [4], dtype: 'float32', quantization: { dtype: 'uint8', scale: 0.1, min: -3 } },
    { name: 's16', shape: [4], dtype: 'float32', quantization: { dtype: 'uint16', scale: 0.001, min: -1 } },
    { name: 'half', shape: [4], dtype: 'float32', quantization: { dtype: 'float16' } } as TF.io.WeightsManifestEntry,
    { name: 'axis', shape: [1], dtype: 'int32' },
    { name: 'mask', shape: [4], dtype: 'bool' },
    { name: 'words', shape: [2], dtype: 'string' },
  ];
  const words = ['weights', 'a\u00e9'].map((word) => Buffer.from(word));
  const data = Buffer.concat([
    Buffer.from(Float32Array.from({ length: 12 }, (_, i) => Math.sin(i + 1)).buffer),
    Buffer.from([0, 100, 200, 255]),
    Buffer.from(Uint16Array.of(0, 1000, 40000, 65535).buffer),
    Buffer.from(Uint16Array.of(0x3c00, 0xb800, 0x0001, 0x7bff).buffer),
    Buffer.from(Int32Array.of(1).buffer),
    Buffer.from([1, 0, 1, 1]),
    ...words.flatMap((word) => [Buffer.from(Uint32Array.of(word.length).buffer), word]),
  ]);
  const constants = specs.map(({ name, dtype }) => ({
    name,
    op: 'Const',
    attr: attr.dtype(
      { float32: 'DT_FLOAT', int32: 'DT_INT32', bool: 'DT_BOOL', string: 'DT_STRING' }[dtype as string]!,
    ),
  }));
  const node = (name: string, op: string, input: string[], extra: object = {}) => ({
    name,
    op,
    input,
    attr: { ...attr.float, ...extra },
  });
  const graph = {
    node: [
      {
        name: 'x',
        op: 'Placeholder',
        attr: { ...attr.dtype('DT_FLOAT'), shape: { shape: { dim: [{ size: '-1' }, { size: '3' }] } } },
      },
      ...constants,
      node('product', 'MatMul', ['x', 'w'], { transpose_a: { b: false }, transpose_b: { b: false } }),
      node('sum', 'AddV2', ['product', 'b8']),
      node('relu', 'Relu', ['sum']),
      node('scaled', 'Mul', ['relu', 's16']),
      node('shifted', 'AddV2', ['scaled', 'half']),
      node('chosen', 'SelectV2', ['mask', 'shifted', 'scaled']),
      node('y', 'Max', ['chosen', 'axis'], { keep_dims: { b: false } }),
      node('text', 'Identity', ['words'], { T: { type: 'DT_STRING' } }),
      node('all', 'Identity', ['chosen']),
    ],
    versions: { producer: 1 },
  };
  const weightData = data.buffer.slice(data.byteOffset, data.byteOffset + data.length) as ArrayBuffer;
  return writeModel(folder, {
    format: 'graph-model',
    modelTopology: graph,
    weightSpecs: specs,
    weightData,
  } as Artifacts);
}
