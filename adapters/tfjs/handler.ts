import { basename, dirname, join } from 'node:path';
import { ReadableStream } from 'node:stream/web';
import { boolean, checkOptions, isList, takesAtMost } from '../../src/base/checks.js';
import type { CallWatch, FileCalls } from '../../src/base/waiting.js';
import {
  artifactsOf,
  firstOf,
  readModelJson,
  type TfjsModel,
  type WeightSpec,
} from '../../src/models/tfjs/model-json.js';
import { type Files, listedFiles, resolveFiles } from '../../src/safetensors/files.js';
import { tensorsOf } from '../../src/safetensors/shard-set.js';
import { readShards } from '../../src/safetensors/shards.js';
import { ruleOf, toTfDtype } from './dtypes.js';
import type { Loose } from './tensorflow.js';
import {
  DECIDED,
  iterateWeights,
  type Stored,
  WEIGHT_CHECKS,
  WeightMatch,
  type WeightNames,
  type WeightOptions,
  watchOf,
} from './weights.js';

/** Options of safetensorsHandler: those of loaders, and these. */
export interface SafetensorsHandlerOptions extends WeightOptions {
  /** Path or contents of the model.json; default: what split-tfjs wrote beside the files, else the model.json there. */
  model?: string | URL | object;
  /** From the model's names of weights to those in the files, where they differ; default: none do. */
  names?: WeightNames;
  /** Return the weights as a stream, which only `tf.loadGraphModel` reads; default: true for graph models. */
  stream?: boolean;
}

/** A `tf.io.IOHandler`. */
export interface SafetensorsHandler {
  /** Reads the model.json and the weights, to be passed to TensorFlow.js. */
  load(): Promise<Loose>;
}

// `model` is checked when it is read.
const HANDLER_CHECKS = { ...WEIGHT_CHECKS, model: () => {}, stream: boolean };

/** A larger ArrayBuffer is not portable; beyond it there is one per tensor, which TensorFlow.js 4 takes as well. */
const MAX_SINGLE_BUFFER = 2 ** 30;

/**
 * An ordinary IOHandler over .safetensors files, for every function that takes one:
 * `tf.loadGraphModel(safetensorsHandler(files))`. TensorFlow.js decodes and copies the weights itself; loadGraphModel
 * and loadLayersModel of this package are faster and copy nothing. Throws INVALID_ARGUMENT; load() rejects as those do.
 */
export function safetensorsHandler(given: Files, options: SafetensorsHandlerOptions = {}): SafetensorsHandler {
  takesAtMost(2, arguments, 'safetensorsHandler');
  const files = listedFiles(given, 'safetensorsHandler');
  checkOptions(options, HANDLER_CHECKS, DECIDED);
  const { model, names, stream, ...rest } = options;
  return {
    async load() {
      const calls = watchOf(rest);
      const place = model ?? (await calls.during(besides(files, { ...rest, calls })));
      const source = await calls.during(readModelJson(place, undefined, calls));
      const streams = stream ?? source.json.format === 'graph-model';
      const weightSpecs = await calls.during(specsInOrder(source, files, names, { ...rest, calls }));
      const tensors = () => encodeAll(source, files, names, rest, calls);
      const count = weightSpecs.length;
      const artifacts = { ...artifactsOf(source), weightSpecs };
      if (streams) return { ...artifacts, getWeightStream: () => streamOf(tensors(), count) };
      return { ...artifacts, weightData: await together(tensors()) };
    },
  };
}

/** The path of the model.json beside the files: split-tfjs's own if it exists. */
async function besides(files: Files, options: WeightOptions & { calls: FileCalls }): Promise<string> {
  if (isList(files) && [...files].length === 0) return 'model.json';
  const { paths, index } = await resolveFiles(files, options);
  const first = index?.path ?? paths[0]!;
  const [stem] = basename(first).split(/(?:-\d+-of-\d+)?\.safetensors/);
  const split = join(dirname(first), `${stem}.split.json`);
  return (await firstOf([split], options.calls)) ?? join(dirname(first), 'model.json');
}

/**
 * The weights as they will be encoded, in the order in which iterateWeights() yields them. Rejects as that does: an
 * error in the middle of a stream would come too late.
 */
async function specsInOrder(
  { specs }: TfjsModel,
  files: Files,
  names: WeightNames | undefined,
  options: WeightOptions & { calls: FileCalls },
): Promise<WeightSpec[]> {
  const match = new WeightMatch(specs, names);
  const shards = await readShards(files, { ...options });
  const stored: WeightSpec[] = [];
  for (const [file, index] of tensorsOf(shards)) {
    const frame = file.frameAt(index);
    if (!match.add(frame)) continue;
    const { specs } = match.of(frame);
    if (specs.length === 0) stored.push(encoded(undefined, frame));
    for (const spec of specs) stored.push(encoded(spec, frame));
  }
  match.checkComplete();
  return stored;
}

/** The spec that tells TensorFlow.js how encodeAll() leaves a tensor. */
function encoded(spec: WeightSpec | undefined, stored: Stored): WeightSpec {
  const { quantization, ...plain } = spec ?? { name: stored.name, shape: stored.shape, dtype: 'float32' as const };
  if (spec?.dtype === 'string') return spec;
  if (quantization?.scale !== undefined && (stored.dtype === 'U8' || stored.dtype === 'U16')) return spec!;
  if (stored.dtype === 'F16') return { ...plain, dtype: 'float32', quantization: { dtype: 'float16' } };
  return { ...plain, dtype: ruleOf(stored).dtype };
}

/** The bytes of each weight, as encoded() describes them. */
async function* encodeAll(
  { specs }: TfjsModel,
  files: Files,
  names: WeightNames | undefined,
  options: WeightOptions,
  watch: CallWatch,
): AsyncGenerator<ArrayBuffer, void, void> {
  for await (const { specs: same, tensor, wish } of iterateWeights(specs, files, names, options, watch)) {
    const raw = same[0]?.dtype === 'string' || wish.affine || tensor.dtype === 'F16' || ruleOf(tensor).direct;
    const given = raw ? tensor : await toTfDtype(tensor, ruleOf(tensor).dtype as 'float32' | 'int32');
    const { data } = given; // holds a reference of its own
    // A buffer of its own: small tensors lie in one with their neighbours.
    const { buffer } = data.byteLength < data.buffer.byteLength ? data.slice() : data;
    given.dispose();
    tensor.dispose();
    for (let i = 0; i < Math.max(1, same.length); ++i) yield buffer as ArrayBuffer;
  }
}

/** Ends the generator with the last of `count` buffers: TensorFlow.js stops reading when it has all weights. */
function streamOf(buffers: AsyncGenerator<ArrayBuffer, void, void>, count: number): ReadableStream<ArrayBuffer> {
  let left = count;
  return new ReadableStream(
    {
      async pull(controller) {
        const { done, value } = await buffers.next();
        if (!done) controller.enqueue(value);
        if (!done && (--left > 0 || !(await buffers.next()).done)) return;
        controller.close();
      },
      async cancel() {
        await buffers.return();
      },
    },
    { highWaterMark: 0 },
  );
}

async function together(buffers: AsyncIterable<ArrayBuffer>): Promise<ArrayBuffer | ArrayBuffer[]> {
  const parts: ArrayBuffer[] = [];
  for await (const buffer of buffers) parts.push(buffer);
  const total = parts.reduce((sum, part) => sum + part.byteLength, 0);
  if (total > MAX_SINGLE_BUFFER) return parts;
  const whole = new Uint8Array(total);
  let at = 0;
  for (const part of parts) {
    whole.set(new Uint8Array(part), at);
    at += part.byteLength;
  }
  return whole.buffer;
}
