/** Surgery that moves the weights of an ONNX model into a .safetensors file: `split-onnx`. */
import { basename, dirname, join, resolve } from 'node:path';
import { pathOf } from '../../base/checks.js';
import type { DTypeName } from '../../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../../base/errors.js';
import { makeFolder } from '../../base/make-folder.js';
import { SafeTensorsMetadata } from '../../safetensors/metadata.js';
import { type SaveArray, saveFile } from '../../safetensors/save-file.js';
import { generatorOf, refuseOverwriting } from '../refuse-overwriting.js';
import { type Model, parseModel, type Weight } from './graph.js';
import { readModel, writeModel } from './model-file.js';
import { bringInside, pointOutside, turnIntoInputs } from './rewrite.js';
import { nameOfType } from './schema.js';
import { externalPlace, packedName, storedAs } from './tensor-proto.js';
import { TensorReader } from './tensor-reader.js';
import { uniqueNames } from './unique-names.js';

/** Smaller floating tensors stay in the graph, and of other types those below 64 KiB, which may be shapes. */
export const DEFAULT_MIN_BYTES = 1024;

export interface OnnxSplitOptions {
  /** Folder for both files, made if it does not exist; default: the model's own. */
  out?: string;
  /** Make the weights inputs of the graph instead of external data; default: false. */
  asInputs?: boolean;
  /** Tensors of fewer bytes stay in the graph; default: 1024. */
  minBytes?: number;
  /** Read external data through links that leave the model's folder; default: true. */
  followLinks?: boolean;
}

/** A weight that was moved to the weights file. */
export interface LiftedTensor {
  /**
   * Name in the weights file and, with `asInputs`, of the graph's input. Two weights over the same bytes of a file have
   * one. A type that safetensors lacks is its end: "w.int4".
   */
  readonly name: string;
  /** Name in the model; differs from `name` where several graphs use one name. */
  readonly modelName: string;
  /** The nodes and attributes that lead to the graph that holds it; '' for the model's own graph. */
  readonly graph: string;
  readonly from: 'initializer' | 'constant';
  /** In the weights file: U8 for types that safetensors lacks. */
  readonly dtype: DTypeName;
  /** In the model. */
  readonly shape: readonly number[];
  readonly byteLength: number;
}

/** A tensor that stayed in the graph, and why. */
interface InlineTensor {
  readonly name: string;
  readonly graph: string;
  /** Null for types that safetensors cannot express. */
  readonly dtype: DTypeName | null;
  readonly byteLength: number;
  readonly reason: string;
}

export interface OnnxSplitReport {
  /** Path of the original model. */
  readonly model: string;
  /** Path of the new graph. */
  readonly graph: string;
  /** Path of the weights file. */
  readonly weights: string;
  readonly mode: 'external-data' | 'inputs';
  readonly minBytes: number;
  /** Bytes of all tensors in the weights file. */
  readonly bytes: number;
  readonly tensors: readonly LiftedTensor[];
  readonly inline: readonly InlineTensor[];
}

/**
 * Lifts the weights of an ONNX model into `<model>.safetensors` and writes `<model>.split.onnx` beside it, a graph that
 * points into that file (external data) or takes the weights as inputs. Weights are the initializers and Constant nodes
 * of the model's graph and of the graphs inside its nodes; everything else stays byte for byte. Both files are replaced
 * atomically, the weights first. Model and weights are held in memory once.
 *
 * Rejects with INVALID_ARGUMENT or UNEXPECTED_EOF for what is no ONNX model, TENSOR_INVALID_INFO for broken tensors,
 * DUPLICATE_TENSOR, UNSAFE_SHARD_PATH or MISSING_SHARD for external data, INVALID_ARGUMENT when there is nothing to
 * lift or a file would be overwritten that no split wrote, IO_ERROR for files that cannot be read or written.
 */
export async function splitOnnx(modelPath: string | URL, options: OnnxSplitOptions = {}): Promise<OnnxSplitReport> {
  const minBytes = options.minBytes ?? DEFAULT_MIN_BYTES;
  if (!Number.isSafeInteger(minBytes) || minBytes < 0) {
    throw new InvalidArgumentError(`minBytes is ${minBytes}, expected a whole number of bytes, 0 or more`);
  }
  const path = resolve(pathOf(modelPath, 'model'));
  const model = parseModel(await readModel(path), path, minBytes);
  const lifted = model.weights.filter((weight) => weight.stays === undefined);
  if (lifted.length === 0) {
    const why = `no tensor of ${minBytes} bytes or more (64 KiB if not floating) in initializers or Constant nodes`;
    throw new FastSafetensorsError('INVALID_ARGUMENT', `${path}: nothing to lift: ${why}`, { path });
  }

  const stem = join(
    resolve(options.out === undefined ? dirname(path) : pathOf(options.out, 'out')),
    basename(path).replace(/\.onnx$/i, ''),
  );
  const files = { model: path, graph: `${stem}.split.onnx`, weights: `${stem}.safetensors` };
  const reader = new TensorReader(path, options);
  try {
    const places = await externalPlaces(model, reader);
    await makeFolder(dirname(stem));
    await refuseOverwriting(files.weights, 'split-onnx', new Set([...places.values()].map(({ file }) => file)));

    const stored = storedTensors(model, lifted, (weight) => sharedBytes(weight, places.get(weight), options.asInputs));
    const tensors: SaveArray[] = [];
    for (const [i, { info, tensor }] of lifted.entries()) {
      const { name, dtype, shape, isShared } = stored[i]!;
      if (!isShared) tensors.push({ name, dtype, shape, data: await reader.read(tensor, info) });
    }
    for (const { tensor, info, stays } of model.weights) {
      if (stays !== undefined && info.external) bringInside(tensor, await reader.read(tensor, info));
    }
    await saveFile(tensors, files.weights, { metadata: describe(path, lifted, stored) });
    const names = stored.map(({ name }) => name);
    await writeGraph(model, lifted, names, files, options.asInputs ?? false);
    return {
      ...files,
      mode: options.asInputs ? 'inputs' : 'external-data',
      minBytes,
      bytes: tensors.reduce((sum, { data }) => sum + data.byteLength, 0),
      tensors: lifted.map((weight, i) => liftedTensor(weight, names[i]!)),
      inline: model.weights.flatMap(({ info: { name, dtype = null, byteLength }, graph, stays }) =>
        stays === undefined ? [] : [{ name, graph: graph.path, dtype, byteLength, reason: stays }],
      ),
    };
  } finally {
    await reader.close();
  }
}

async function writeGraph(
  model: Model,
  lifted: readonly Weight[],
  names: readonly string[],
  files: { readonly graph: string; readonly weights: string },
  asInputs: boolean,
): Promise<void> {
  if (asInputs) {
    turnIntoInputs(model, lifted, names);
  } else {
    const header = await SafeTensorsMetadata.fromFile(files.weights);
    const location = basename(files.weights);
    const places = names.map((name) => {
      const [begin, end] = header.get(name)!.dataOffsets;
      return { location, offset: header.dataStart + begin, length: end - begin };
    });
    pointOutside(model, lifted, places);
  }
  await writeModel(files.graph, model.message.encode());
}

/** A weight's tensor in the weights file, and whether another weight before it has the same. */
interface StoredTensor extends ReturnType<typeof storedAs> {
  readonly isShared: boolean;
}

/** The tensors of the weights, in their order. Weights of one `key` share that of the first. */
function storedTensors(
  model: Model,
  lifted: readonly Weight[],
  keyOf: (weight: Weight) => string | undefined,
): StoredTensor[] {
  const names = uniqueNames(model, lifted, ({ info }, name) => storedAs(info, name).name);
  const first = new Map<string, StoredTensor>();
  return lifted.map((weight, i) => {
    const key = keyOf(weight);
    const shared = key === undefined ? undefined : first.get(key);
    if (shared) return { ...shared, isShared: true };
    const own = { ...storedAs(weight.info, ''), name: names[i]!, isShared: false };
    if (key !== undefined) first.set(key, own);
    return own;
  });
}

/** Where a weight's data are: bytes of a file. */
interface ExternalPlace {
  readonly file: string;
  readonly offset: number;
}

/**
 * What weights over the same bytes of a file have in common: one tensor is enough for them, and as inputs where it has
 * one shape and is nobody's output. Undefined for a weight that has its bytes for itself.
 */
function sharedBytes({ info, graph }: Weight, place: ExternalPlace | undefined, asInputs = false): string | undefined {
  if (!place || (asInputs && graph.outputs.has(info.name))) return undefined;
  const bytes = [place.file, place.offset, info.byteLength];
  return JSON.stringify(asInputs ? [...bytes, info.dataType, info.shape] : bytes);
}

/** The external data of a model, links followed. */
async function externalPlaces(model: Model, reader: TensorReader): Promise<Map<Weight, ExternalPlace>> {
  const places = new Map<Weight, ExternalPlace>();
  for (const weight of model.weights) {
    const { tensor, info } = weight;
    if (!info.external || info.byteLength === 0) continue;
    const { location, offset } = externalPlace(tensor, info, model.path);
    places.set(weight, { file: await reader.file(location, info.name), offset });
  }
  return places;
}

function liftedTensor({ info, graph, node }: Weight, name: string): LiftedTensor {
  return {
    name,
    modelName: info.name,
    graph: graph.path,
    from: node ? 'constant' : 'initializer',
    dtype: info.dtype ?? 'U8',
    shape: info.shape,
    byteLength: info.byteLength,
  };
}

/** What the weights file says of itself: tensors under another name than in the model, and those of other types. */
function describe(path: string, lifted: readonly Weight[], stored: readonly StoredTensor[]): Record<string, string> {
  const renamed: [string, unknown][] = [];
  const packed: [string, unknown][] = [];
  for (const [i, { info, graph }] of lifted.entries()) {
    const { name, isShared } = stored[i]!;
    if (isShared) continue;
    const known = info.dtype ? info.name : packedName(info.name, info.dataType);
    if (name !== known) renamed.push([name, { graph: graph.path, name: info.name }]);
    if (!info.dtype) packed.push([name, { type: nameOfType(info.dataType), shape: info.shape }]);
  }
  return {
    format: 'onnx',
    generator: generatorOf('split-onnx'),
    model: basename(path),
    ...(renamed.length > 0 && { renamed: JSON.stringify(Object.fromEntries(renamed)) }),
    ...(packed.length > 0 && { packed: JSON.stringify(Object.fromEntries(packed)) }),
  };
}
