import { realpath, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { writeAtomically } from '../../base/atomic-write.js';
import type { DTypeName } from '../../base/dtype.js';
import { FastSafetensorsError } from '../../base/errors.js';
import { makeFolder } from '../../base/make-folder.js';
import { readRegularFile } from '../../base/regular-file.js';
import { SafeTensorsMetadata } from '../../safetensors/metadata.js';
import { saveFile } from '../../safetensors/save-file.js';
import { definedNames, type Graph, type Model, parseModel, type Weight } from './graph.js';
import { bringInside, pointOutside, turnIntoInputs } from './rewrite.js';
import { externalPlace, readTensorBytes, resolveLocation } from './tensor-proto.js';

/** Smaller tensors stay inline: runtimes read shapes and axes from them while loading, and refuse those in external files. */
export const DEFAULT_MIN_BYTES = 1024;

/** Names the writer in the weights file, so that a file of another origin is never overwritten. */
const GENERATOR = 'fastsafetensors split-onnx';

/** A protobuf message cannot be larger. */
const MAX_MODEL_BYTES = 2 ** 31 - 1;

export interface SplitOptions {
  /** Folder for both files, made where it is not there; the model's own by default. */
  out?: string;
  /** Weights become inputs of the graph instead of external data. */
  asInputs?: boolean;
  /** Smaller tensors stay in the model. 1024 by default. */
  minBytes?: number;
}

export interface LiftedTensor {
  /** Name in the weights file and, with `asInputs`, of the graph's input. */
  readonly name: string;
  /** Name in the model; differs from `name` where inner graphs use one name more than once. */
  readonly modelName: string;
  /** Nodes and attributes on the way to the graph that holds it; '' for the model's own graph. */
  readonly graph: string;
  readonly from: 'initializer' | 'constant';
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
}

export interface InlineTensor {
  readonly name: string;
  readonly graph: string;
  /** Null for types that safetensors cannot express. */
  readonly dtype: DTypeName | null;
  readonly byteLength: number;
  readonly reason: string;
}

export interface SplitReport {
  /** The original model, the new graph and the weights file. */
  readonly model: string;
  readonly graph: string;
  readonly weights: string;
  readonly mode: 'external-data' | 'inputs';
  readonly minBytes: number;
  /** Bytes of all lifted tensors. */
  readonly bytes: number;
  readonly tensors: readonly LiftedTensor[];
  readonly inline: readonly InlineTensor[];
}

/**
 * Lifts the weights of an ONNX model into `<model>.safetensors` and writes `<model>.split.onnx` beside it, which points into that
 * file (external data) or takes the weights as inputs. Initializers and Constant nodes alike, in the model's graph and in the graphs
 * inside its nodes; everything else in the model stays byte for byte. Both files are replaced atomically, the weights first.
 * The model and its weights are held in memory once.
 *
 * Rejects with INVALID_ARGUMENT or UNEXPECTED_EOF for what is no ONNX model, TENSOR_INVALID_INFO for broken tensors, UNSAFE_SHARD_PATH for
 * external data outside the model's folder, IO_ERROR for files that cannot be read or written.
 */
export async function splitOnnx(modelPath: string, options: SplitOptions = {}): Promise<SplitReport> {
  const minBytes = options.minBytes ?? DEFAULT_MIN_BYTES;
  if (!Number.isSafeInteger(minBytes) || minBytes < 0) {
    throw new FastSafetensorsError(
      'INVALID_ARGUMENT',
      `minBytes is ${minBytes}, expected a whole number of bytes, 0 or more`,
    );
  }
  const path = resolve(modelPath);
  const model = parseModel(await readModel(path), path, minBytes);
  const lifted = model.weights.filter((weight) => weight.stays === undefined);
  if (lifted.length === 0) {
    throw new FastSafetensorsError(
      'INVALID_ARGUMENT',
      `${path}: nothing to lift: no floating tensor of ${minBytes} bytes or more in initializers or Constant nodes`,
      { path },
    );
  }

  const stem = join(resolve(options.out ?? dirname(path)), basename(path).replace(/\.onnx$/i, ''));
  const files = { model: path, graph: `${stem}.split.onnx`, weights: `${stem}.safetensors` };
  await makeFolder(dirname(stem));
  await refuseOverwriting(files.weights, model);

  const names = uniqueNames(model, lifted);
  const tensors: { name: string; dtype: DTypeName; shape: readonly number[]; data: Uint8Array }[] = [];
  for (const weight of lifted) {
    const { dtype, shape } = weight.info;
    tensors.push({
      name: names.get(weight)!,
      dtype: dtype!,
      shape,
      data: await readTensorBytes(weight.tensor, weight.info, path),
    });
  }
  for (const { tensor, info, stays } of model.weights) {
    if (stays !== undefined && info.external) bringInside(tensor, await readTensorBytes(tensor, info, path));
  }
  await saveFile(tensors, files.weights, { metadata: describe(path, lifted, names) });

  if (options.asInputs) {
    turnIntoInputs(model, lifted, (weight) => names.get(weight)!);
  } else {
    const header = await SafeTensorsMetadata.fromFile(files.weights);
    pointOutside(model, lifted, (weight) => {
      const [begin, end] = header.get(names.get(weight)!)!.dataOffsets;
      return { location: basename(files.weights), offset: header.dataStart + begin, length: end - begin };
    });
  }
  await writeModel(files.graph, model);

  return {
    ...files,
    mode: options.asInputs ? 'inputs' : 'external-data',
    minBytes,
    bytes: tensors.reduce((sum, { data }) => sum + data.length, 0),
    tensors: lifted.map((weight) => ({
      name: names.get(weight)!,
      modelName: weight.info.name,
      graph: weight.graph.path,
      from: weight.node ? 'constant' : 'initializer',
      dtype: weight.info.dtype!,
      shape: weight.info.shape,
      byteLength: weight.info.byteLength,
    })),
    inline: model.weights.flatMap(({ info, graph, stays }) =>
      stays === undefined
        ? []
        : [
            {
              name: info.name,
              graph: graph.path,
              dtype: info.dtype ?? null,
              byteLength: info.byteLength,
              reason: stays,
            },
          ],
    ),
  };
}

/** The bytes of a model file. IO_ERROR; INVALID_ARGUMENT for more than a protobuf message can have. */
export async function readModel(path: string): Promise<Uint8Array> {
  let size: number;
  try {
    ({ size } = await stat(path));
    if (size <= MAX_MODEL_BYTES) return await readRegularFile(path, MAX_MODEL_BYTES);
  } catch (cause) {
    throw new FastSafetensorsError('IO_ERROR', `${path}: ${(cause as Error).message}`, { path, cause });
  }
  throw new FastSafetensorsError(
    'INVALID_ARGUMENT',
    `${path}: ${size} bytes, but an ONNX model has at most ${MAX_MODEL_BYTES}; larger ones keep weights in files of their own`,
    { path },
  );
}

/**
 * A name for each weight that nothing else in the model has, so that an inner graph's weight can move to the outermost one.
 * The model's own graph keeps its names; inner ones keep theirs where no other graph defines it.
 */
function uniqueNames(model: Model, lifted: readonly Weight[]): Map<Weight, string> {
  const definitions = new Map<string, number>();
  const count = (graph: Graph) => {
    for (const name of definedNames(graph)) definitions.set(name, (definitions.get(name) ?? 0) + 1);
    for (const inner of [...graph.inner.values()].flat()) count(inner);
  };
  count(model.graph);

  const names = new Map<Weight, string>();
  const perGraph = new Map<Graph, Set<string>>();
  for (const weight of lifted) {
    const { name } = weight.info;
    const here = perGraph.get(weight.graph) ?? new Set();
    if (here.has(name)) {
      throw new FastSafetensorsError(
        'DUPLICATE_TENSOR',
        `${model.path}: graph "${weight.graph.path}" defines tensor "${name}" twice`,
        { path: model.path, tensor: name },
      );
    }
    perGraph.set(weight.graph, here.add(name));

    // '__metadata__' is the one name that safetensors keeps for itself.
    let unique = name;
    if (name === '__metadata__' || (weight.graph !== model.graph && definitions.get(name)! > 1)) {
      for (let n = 1; definitions.has(unique) || unique === '__metadata__'; ++n) unique = `${name}_${n}`;
      definitions.set(unique, 1);
    }
    names.set(weight, unique);
  }
  return names;
}

function describe(path: string, lifted: readonly Weight[], names: ReadonlyMap<Weight, string>): Record<string, string> {
  const renamed = lifted.filter((weight) => names.get(weight) !== weight.info.name);
  return {
    format: 'onnx',
    generator: GENERATOR,
    model: basename(path),
    ...(renamed.length > 0 && {
      renamed: JSON.stringify(
        Object.fromEntries(
          renamed.map((weight) => [names.get(weight), { graph: weight.graph.path, name: weight.info.name }]),
        ),
      ),
    }),
  };
}

/** `model.safetensors` beside `model.onnx` may well be somebody's only copy of the weights. */
async function refuseOverwriting(weights: string, model: Model): Promise<void> {
  const existing = await realpath(weights).catch(() => undefined);
  if (existing === undefined) return;
  const refuse = (why: string) =>
    new FastSafetensorsError(
      'INVALID_ARGUMENT',
      `${weights}: exists and ${why}; choose another folder with out (--out)`,
      { path: weights },
    );
  for (const { tensor, info } of model.weights.filter((weight) => weight.info.external)) {
    const { location } = externalPlace(tensor, info, model.path);
    if ((await resolveLocation(location, model.path, info.name)) === existing)
      throw refuse('holds weights of the model itself');
  }
  const generator = await SafeTensorsMetadata.fromFile(existing).then(
    (header) => header.metadata.get('generator'),
    () => undefined,
  );
  if (generator !== GENERATOR) throw refuse('was not written by split-onnx');
}

async function writeModel(path: string, model: Model): Promise<void> {
  const bytes = model.message.encode();
  if (bytes.length > MAX_MODEL_BYTES) {
    throw new FastSafetensorsError(
      'INVALID_ARGUMENT',
      `${path}: the graph alone would have ${bytes.length} bytes, but an ONNX model has at most ${MAX_MODEL_BYTES}`,
      { path },
    );
  }
  await writeAtomically(path, [bytes]);
}
