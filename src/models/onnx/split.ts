/** Surgery that moves the weights of an ONNX model into a .safetensors file: `split-onnx`. */
import { basename, dirname, join, resolve } from 'node:path';
import { pathOf } from '../../base/checks.js';
import type { DTypeName } from '../../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../../base/errors.js';
import { makeFolder } from '../../base/make-folder.js';
import { SafeTensorsMetadata } from '../../safetensors/metadata.js';
import { type SaveTensor, saveFile } from '../../safetensors/save-file.js';
import { generatorOf, refuseOverwriting } from '../refuse-overwriting.js';
import { type Model, parseModel, type Weight } from './graph.js';
import { readModel, writeModel } from './model-file.js';
import { bringInside, pointOutside, turnIntoInputs } from './rewrite.js';
import { externalPlace, readTensorBytes, resolveLocation } from './tensor-proto.js';
import { uniqueNames } from './unique-names.js';

/** Smaller tensors stay in the graph: while loading, runtimes read shapes and axes from them, but not from files. */
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
  /** Name in the weights file and, with `asInputs`, of the graph's input. */
  readonly name: string;
  /** Name in the model; differs from `name` where several graphs use one name. */
  readonly modelName: string;
  /** The nodes and attributes that lead to the graph that holds it; '' for the model's own graph. */
  readonly graph: string;
  readonly from: 'initializer' | 'constant';
  readonly dtype: DTypeName;
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
  /** Bytes of all lifted tensors. */
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
    const why = `no floating tensor of ${minBytes} bytes or more in initializers or Constant nodes`;
    throw new FastSafetensorsError('INVALID_ARGUMENT', `${path}: nothing to lift: ${why}`, { path });
  }

  const stem = join(
    resolve(options.out === undefined ? dirname(path) : pathOf(options.out, 'out')),
    basename(path).replace(/\.onnx$/i, ''),
  );
  const files = { model: path, graph: `${stem}.split.onnx`, weights: `${stem}.safetensors` };
  await makeFolder(dirname(stem));
  await refuseOverwriting(files.weights, 'split-onnx', await externalFiles(model, options));

  const names = uniqueNames(model, lifted);
  const tensors: SaveTensor[] = [];
  for (const weight of lifted) {
    const { dtype, shape } = weight.info;
    const data = await readTensorBytes(weight.tensor, weight.info, path);
    tensors.push({ name: names.get(weight)!, dtype: dtype!, shape, data });
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
  await writeModel(files.graph, model.message.encode());

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
    inline: model.weights.flatMap(({ info: { name, dtype = null, byteLength }, graph, stays }) =>
      stays === undefined ? [] : [{ name, graph: graph.path, dtype, byteLength, reason: stays }],
    ),
  };
}

function describe(path: string, lifted: readonly Weight[], names: ReadonlyMap<Weight, string>): Record<string, string> {
  const renamed = lifted.flatMap((weight) => {
    const { info, graph } = weight;
    return names.get(weight) === info.name ? [] : [[names.get(weight), { graph: graph.path, name: info.name }]];
  });
  return {
    format: 'onnx',
    generator: generatorOf('split-onnx'),
    model: basename(path),
    ...(renamed.length > 0 && { renamed: JSON.stringify(Object.fromEntries(renamed)) }),
  };
}

/** The files beside the model that hold its external data. */
async function externalFiles(model: Model, options: OnnxSplitOptions): Promise<Set<string>> {
  const files = new Set<string>();
  for (const { tensor, info } of model.weights) {
    if (!info.external) continue;
    const { location } = externalPlace(tensor, info, model.path);
    files.add(await resolveLocation(location, model.path, info.name, options));
  }
  return files;
}
