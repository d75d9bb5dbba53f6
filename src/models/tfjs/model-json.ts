/** Reading and checking model.json, the file of a TensorFlow.js model. */
import { dirname, join } from 'node:path';
import { isUrl, pathOf } from '../../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError, ioError } from '../../base/errors.js';
import type { FileCalls } from '../../base/waiting.js';
import { readFile, stat } from '../../native/addon.js';
import type { Files } from '../../safetensors/files.js';
import { snapshotOf } from '../../safetensors/hub-cache.js';
import { namedFile } from '../../safetensors/named-file.js';
import { otherFormat } from '../../safetensors/other-format.js';

/** About what a string can hold. */
const MAX_MODEL_BYTES = 500_000_000;

/** One entry of a weights manifest, as TensorFlow.js defines it (tfjs-core/src/io/types.ts, WeightsManifestEntry). */
export interface WeightSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: 'float32' | 'int32' | 'bool' | 'string' | 'complex64';
  readonly group?: 'model' | 'optimizer';
  readonly quantization?: {
    readonly dtype: 'uint8' | 'uint16' | 'float16';
    readonly scale?: number;
    readonly min?: number;
  };
}

/** Weights that lie one after the other in the files of `paths`, taken together. */
export interface WeightsGroup {
  readonly paths: readonly string[];
  readonly weights: readonly WeightSpec[];
}

/** What is read of a model.json here; the rest is passed on as it is. */
interface ModelJson {
  readonly format?: string;
  readonly modelTopology: Record<string, unknown>;
  readonly weightsManifest?: readonly WeightsGroup[];
  /** Written by split-tfjs: the path of the weights, relative to the model.json's folder. */
  readonly fastsafetensors?: { readonly weights: string };
  readonly [key: string]: unknown;
}

/** A checked model.json. */
export interface TfjsModel {
  /** Path of the model.json, or what stands for it in messages. */
  readonly path: string;
  /** The model.json's folder; null for contents that were passed. */
  readonly folder: string | null;
  readonly json: ModelJson;
  /** The entries of all groups, one after the other. */
  readonly specs: readonly WeightSpec[];
}

/** The name of a model's file in its folder. */
const MODEL_NAME = 'model.json';
/** The same for loading, where split-tfjs may have been. */
export const LOADABLE_NAMES = ['model.split.json', MODEL_NAME];

const DTYPES = ['float32', 'int32', 'bool', 'string', 'complex64'];
const QUANTIZED = ['uint8', 'uint16', 'float16'];

/**
 * Reads a model.json: by its path or file: URL, also one like file://./model.json as tfjs-node takes it; by its folder,
 * which means the first of `names` that exists there, or in the snapshot of refs/main; or already parsed. Rejects with
 * IO_ERROR, INVALID_INDEX for what is no model.json, DUPLICATE_TENSOR, INVALID_ARGUMENT or MISSING_SHARD.
 */
export async function readModelJson(
  given: string | URL | object,
  names: readonly string[] = [MODEL_NAME],
  calls?: FileCalls,
): Promise<TfjsModel> {
  if (typeof given === 'object' && given !== null && !isUrl(given))
    return { ...checkModel(given, 'the model'), folder: null };
  if ((typeof given !== 'string' || given === '') && !isUrl(given)) {
    throw new InvalidArgumentError(`model: expected the path of a model.json or its contents, found ${typeof given}`);
  }
  const relative = typeof given === 'string' && /^file:\/\/(?!\/|localhost\/)/i.test(given);
  const model = relative ? given.slice('file://'.length) : pathOf(given, 'model');
  const bytes = await readFile(model, MAX_MODEL_BYTES, calls).catch((cause) => {
    if ((cause as NodeJS.ErrnoException).code === 'EISDIR') return null;
    throw ioError('read', model, cause);
  });
  if (bytes === null) {
    const paths = names.map((name) => join(model, name));
    const there = await firstOf(paths, calls);
    const snapshot = there ? undefined : await snapshotOf(model, calls);
    return snapshot
      ? readModelJson(snapshot, names, calls)
      : readModelJson(there ?? paths.at(-1)!, [MODEL_NAME], calls);
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(Buffer.from(bytes).toString());
  } catch (error) {
    throw invalid(model, otherFormat(bytes, 'json') ?? `no JSON: ${(error as Error).message}`);
  }
  return { ...checkModel(parsed, model), folder: dirname(model) };
}

/** The first path where something is; undefined for none. */
export async function firstOf(paths: readonly string[], calls?: FileCalls): Promise<string | undefined> {
  for (const path of paths) {
    const there = await stat(path, calls).catch(() => undefined);
    if (there) return path;
  }
  return undefined;
}

function checkModel(parsed: unknown, path: string): Omit<TfjsModel, 'folder'> {
  if (!isObject(parsed)) throw invalid(path, 'no object');
  if (!isObject(parsed.modelTopology)) throw invalid(path, 'no object "modelTopology"');
  const groups = parsed.weightsManifest ?? [];
  if (!Array.isArray(groups)) throw invalid(path, 'a "weightsManifest" that is no array');
  const seen = new Set<string>();
  const specs = groups.flatMap((group: unknown, index) => {
    const where = `weightsManifest[${index}]`;
    if (!isObject(group) || !isStrings(group.paths) || !Array.isArray(group.weights)) {
      throw invalid(path, `${where} without "paths" and "weights"`);
    }
    for (const spec of group.weights) checkSpec(spec, path, where);
    return group.weights as WeightSpec[];
  });
  for (const { name } of specs) {
    if (seen.has(name)) {
      const message = `${path}: the weight "${name}" is listed twice`;
      throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { path, tensor: name });
    }
    seen.add(name);
  }
  const split = parsed.fastsafetensors;
  if (split !== undefined && !(isObject(split) && typeof split.weights === 'string')) {
    throw invalid(path, 'a "fastsafetensors" without "weights"');
  }
  return { path, json: parsed as ModelJson, specs };
}

function checkSpec(spec: unknown, path: string, where: string): void {
  if (!isObject(spec) || typeof spec.name !== 'string') throw invalid(path, `a weight without a name in ${where}`);
  const { name, shape, dtype, quantization } = spec;
  const wrong = (what: string) => invalid(path, `the weight "${name}" with ${what}`, name as string);
  if (name === '__proto__') throw wrong('a name that TensorFlow.js loses');
  if (!Array.isArray(shape) || !shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    throw wrong(`the shape ${JSON.stringify(shape)}`);
  }
  if (!DTYPES.includes(dtype as string)) throw wrong(`the dtype ${JSON.stringify(dtype)}`);
  if (quantization === undefined) return;
  if (!isObject(quantization) || !QUANTIZED.includes(quantization.dtype as string))
    throw wrong('an unknown quantization');
  const float16 = quantization.dtype === 'float16';
  if (dtype !== 'float32' && (float16 || dtype !== 'int32')) throw wrong(`a quantization of ${String(dtype)}`);
  if (!float16 && (typeof quantization.scale !== 'number' || typeof quantization.min !== 'number')) {
    throw wrong('a quantization without "scale" and "min"');
  }
}

/** INVALID_ARGUMENT for a model of the other kind, naming the function that loads it. */
export function checkFormat({ path, json }: TfjsModel, caller: 'loadGraphModel' | 'loadLayersModel'): void {
  const other = caller === 'loadGraphModel' ? 'layers-model' : 'graph-model';
  if (json.format !== other) return; // older models do not say
  const right = caller === 'loadGraphModel' ? 'loadLayersModel' : 'loadGraphModel';
  throw new InvalidArgumentError(`${caller}: ${path} is a ${other} (so says its "format"); load it with ${right}`);
}

/**
 * The weights' files: those given, else those of split-tfjs. INVALID_ARGUMENT for neither, UNSAFE_SHARD_PATH,
 * MISSING_SHARD.
 */
export async function weightsOf(
  { path, folder, json }: TfjsModel,
  weights: Files | undefined,
  options: { followLinks?: boolean; calls?: FileCalls } = {},
): Promise<Files> {
  if (weights !== undefined) return weights;
  const { fastsafetensors } = json;
  if (fastsafetensors === undefined || folder === null) {
    throw new InvalidArgumentError(
      `weights: expected .safetensors files, found nothing, and ${path} does not name any; ` +
        'make them with npx fastsafetensors-node split-tfjs',
    );
  }
  const { weights: name } = fastsafetensors;
  return (await namedFile(name, folder, { path, says: `${path} names the file ${JSON.stringify(name)}` }, options))
    .path;
}

/** A model's artifacts as an IOHandler's load() returns them, without weights. */
export function artifactsOf({ json }: TfjsModel): Record<string, unknown> {
  const { weightsManifest, fastsafetensors, ...artifacts } = json;
  return artifacts;
}

function invalid(path: string, found: string, tensor?: string): FastSafetensorsError {
  const message = `${path}: expected a TensorFlow.js model {"modelTopology": …, "weightsManifest": …}, found ${found}`;
  return new FastSafetensorsError('INVALID_INDEX', message, { path, tensor });
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isStrings(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((item) => typeof item === 'string');
}
