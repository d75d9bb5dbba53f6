import { dirname, relative, resolve } from 'node:path';
import { FastSafetensorsError, ioError } from '../../src/base/errors.js';
import { type FileCalls, UNWATCHED } from '../../src/base/waiting.js';
import type { DeviceTensor } from '../../src/device/device-tensor.js';
import type { FilesBufferOnDevice } from '../../src/loaders/files-buffer.js';
import { type Model, parseModel, type Weight } from '../../src/models/onnx/graph.js';
import { isOrtFormat, readStart, refuseOtherFormat } from '../../src/models/onnx/model-file.js';
import { Message } from '../../src/models/onnx/protobuf.js';
import { bringInside, pointAt, pointOutside, turnIntoInputs } from '../../src/models/onnx/rewrite.js';
import { GRAPH, TENSOR } from '../../src/models/onnx/schema.js';
import { SparseModel } from '../../src/models/onnx/sparse-model.js';
import { uniqueNames } from '../../src/models/onnx/unique-names.js';
import { stat } from '../../src/native/addon.js';
import type { OrtWeight } from '../../src/native/ort.js';
import type { Files } from '../../src/safetensors/files.js';
import { noData } from '../../src/safetensors/other-format.js';
import { memoryOf } from './device-buffer.js';
import { externalShards } from './external-data.js';
import {
  countNames,
  ExternalFiles,
  type Match,
  matchWeights,
  staysInside,
  type Unmatched,
  type WeightNames,
} from './match.js';
import { bitsOfNumber } from './types.js';
import { type SourceTensor, type WeightLoadOptions, Weights } from './weights.js';

/**
 * Converted weights have no bytes in a file that ONNX Runtime could fold and pack constants from. Up to this many bytes
 * are stored inside the model, which gives the very bits and speed of a model that has them there. More are inputs that
 * every run is fed: nothing is copied, but ONNX Runtime cannot take them for constants.
 */
const MAX_CONVERTED_INSIDE = 64 * 1024 * 1024;

/** Without the option `weights`, a model above this size has its weights inside and goes to ONNX Runtime as it is. */
const MAX_PARSED_BYTES = 256 * 1024 * 1024;

export interface PrepareOptions extends WeightLoadOptions {
  readonly weights?: Files | FilesBufferOnDevice;
  readonly names?: WeightNames;
  readonly allowUnmatched?: boolean;
  /** Locations of external data whose bytes the caller gives. */
  readonly givenFiles?: ReadonlySet<string>;
}

/** What a session is made of. */
export interface Prepared {
  readonly model: string | Uint8Array;
  /** The folder of the model's external data; undefined when it has none, or is given by its path. */
  readonly folder?: string;
  /** Over the memory of `tensors`. */
  readonly weights: readonly OrtWeight[];
  /** The caller disposes them. */
  readonly tensors: readonly DeviceTensor[];
  readonly unmatched: Unmatched;
  /** To be called when the session exists: FILE_CHANGED if ONNX Runtime may have read other bytes than were loaded. */
  readonly check: () => Promise<void>;
}

/**
 * Loads the weights of a model and makes the model point at them. Large ones become external data at their place in
 * their file: ONNX Runtime uses our memory instead and reads the file only to fold constants, so nothing is ever
 * computed from a placeholder. Small ones, and those that give shapes, are stored inside the model. Files never change.
 */
export async function prepareModel(given: string | Uint8Array, options: PrepareOptions): Promise<Prepared> {
  const { weights, signal, calls = UNWATCHED } = options;
  const asIs: Prepared = {
    model: given,
    weights: [],
    tensors: [],
    unmatched: { model: [], weights: [] },
    check: async () => {},
  };
  const onDisk = typeof given === 'string';
  const path = onDisk ? resolve(given) : 'the model in memory';
  // First by a thread of the addon: one of libuv's that hangs keeps the process from ending.
  const size = onDisk ? await sizeOf(given, calls) : given.byteLength;
  if (weights === undefined) {
    const start = onDisk ? await calls.call('the beginning of', path, () => readStart(path)) : given;
    if (isOrtFormat(start)) return asIs;
    if (size > MAX_PARSED_BYTES) {
      if (onDisk) await refuseOtherFormat(path);
      return asIs;
    }
  }
  const file = onDisk ? await calls.call('the model', path, () => SparseModel.open(path)) : undefined;
  try {
    signal?.throwIfAborted();
    const model = parseModel(file?.bytes ?? (given as Uint8Array), path, 0);
    const external = new ExternalFiles(model, onDisk, options);
    const outside = model.weights.filter(
      (weight) => weight.info.external && !options.givenFiles?.has(external.place(weight).location),
    );
    if (weights === undefined && (!onDisk || outside.length === 0)) return asIs;
    const set = await (weights === undefined
      ? externalSet(model, outside, external, options)
      : Weights.open(weights, options));
    try {
      return await place(model, file, outside, external, set, options);
    } finally {
      await set.end();
    }
  } finally {
    await file?.close();
  }
}

/** The external data of a model on disk: of .safetensors files by their headers, of others as the model says. */
async function externalSet(
  model: Model,
  outside: readonly Weight[],
  external: ExternalFiles,
  options: PrepareOptions,
): Promise<Weights> {
  const files = new Set<string>();
  const others: Weight[] = [];
  for (const weight of outside) {
    if (external.place(weight).location.endsWith('.safetensors')) {
      files.add(await external.file(weight));
    } else {
      await refusePlaceholder(model, weight, external);
      others.push(weight);
    }
  }
  const set = files.size > 0 ? await Weights.open([...files], options) : Weights.none(options.calls);
  if (others.length > 0) await set.addShards(await externalShards(others, external, (name) => set.sources.has(name)));
  return set;
}

async function place(
  model: Model,
  file: SparseModel | undefined,
  outside: readonly Weight[],
  external: ExternalFiles,
  set: Weights,
  options: PrepareOptions,
): Promise<Prepared> {
  const byPlaceOnly = options.weights === undefined;
  const { matches, unmatched } = await matchWeights(model, external, set.sources, { ...options, byPlaceOnly });
  await file?.complete(matches.flatMap(({ weight }) => (weight && !weight.info.external ? weight.tensor : [])));
  // Weights that stay outside without a tensor of ours are checked before anything is loaded.
  const matched = new Set(matches.map(({ weight }) => weight));
  const left: { weight: Weight; file: string }[] = [];
  for (const weight of outside) {
    if (matched.has(weight)) continue;
    if (weight.info.byteLength === 0) {
      bringInside(weight.tensor, new Uint8Array(0)); // ONNX Runtime may refuse the place of nothing
      continue;
    }
    await refusePlaceholder(model, weight, external);
    left.push({ weight, file: await external.file(weight) });
  }
  const { inside, pointed, given, fed } = choosePlaces(model, matches);
  const read = new Set(pointed.map(({ tensor }) => tensor.path));
  await set.checkUnchanged(read);
  await set.load(new Set([...inside, ...given, ...fed].map(({ tensor }) => tensor.name)), options);

  const data = new Map<Match, Uint8Array>();
  for (const match of inside) {
    const tensor = await set.tensor(match.tensor.name);
    data.set(match, await tensor.toHost().finally(() => tensor.dispose()));
    if (match.weight) bringInside(match.weight.tensor, data.get(match)!);
  }
  const inputs = inside.filter(({ weight }) => !weight);
  addInitializers(model, inputs, (message, match) => message.addBytes(TENSOR.rawData, data.get(match)!));
  const folder = commonFolder([...read, ...left.map(({ file }) => file)]);
  pointOutsideAll(model, pointed, folder);
  for (const { weight, file } of left) {
    pointAt(weight.tensor, { ...external.place(weight), location: relative(folder, file) });
  }
  const memory = await overMemory(given, turnIntoFed(model, fed), set);
  const check = () => set.checkUnchanged(read);
  return { model: model.message.encode(), folder, ...memory, unmatched, check };
}

/**
 * Where the data of each match are: in the model, at their place in their file and, where that is possible, in our
 * memory as well (`given`), or in our memory only.
 */
function choosePlaces(model: Model, matches: readonly Match[]) {
  const count = countNames(model);
  const converted = new Set(matches.filter(({ tensor }) => tensor.offset === undefined));
  const bytes = [...converted].reduce((sum, { tensor }) => sum + tensor.byteLength, 0);
  const canBeFed = ({ name }: Match) =>
    bytes > MAX_CONVERTED_INSIDE && (count.get(name) ?? 1) === 1 && !model.graph.outputs.has(name);
  const goesInside = (match: Match) => staysInside(match) || (converted.has(match) && !canBeFed(match));
  const outside = matches.filter((match) => !goesInside(match));
  const pointed = outside.filter((match) => !converted.has(match));
  return {
    inside: matches.filter(goesInside),
    pointed,
    // ONNX Runtime takes initializers by name, and of some types none: from 24 on its numbers differ between versions.
    // What shares its name with another weight, and what is of these types, it reads from the file.
    given: pointed.filter(({ name, dataType }) => (count.get(name) ?? 1) === 1 && bitsOfNumber(dataType) !== undefined),
    fed: outside.filter((match) => converted.has(match)),
  };
}

/** Makes weights inputs of the model's graph. Returns the matches under the names of those. */
function turnIntoFed(model: Model, matches: readonly Match[]): Match[] {
  if (matches.length === 0) return [];
  const own = matches.filter((match): match is Match & { weight: Weight } => match.weight !== null);
  const weights = own.map(({ weight }) => weight);
  const names = uniqueNames(model, weights);
  turnIntoInputs(model, weights, names);
  const renamed = own.map((match, i) => ({ ...match, name: names[i]! }));
  return [...matches.filter(({ weight }) => weight === null), ...renamed];
}

/** Weights over our memory. */
async function overMemory(
  given: readonly Match[],
  fed: readonly Match[],
  set: Weights,
): Promise<{ weights: OrtWeight[]; tensors: DeviceTensor[] }> {
  const weights: OrtWeight[] = [];
  const tensors: DeviceTensor[] = [];
  for (const [i, { name, tensor: source, shape: dims, dataType: type }] of [...given, ...fed].entries()) {
    const tensor = await set.tensor(source.name);
    tensors.push(tensor);
    const { memory, offset, byteLength } = memoryOf(tensor);
    weights.push({ name, dims, type, isInput: i >= given.length, memory, offset, byteLength });
  }
  return { weights, tensors };
}

function pointOutsideAll(model: Model, matches: readonly Match[], folder: string): void {
  const locations = new Map<string, string>();
  const placeOf = ({ path, offset, byteLength: length }: SourceTensor) => {
    const location = locations.get(path) ?? relative(folder, path);
    locations.set(path, location);
    return { location, offset: offset!, length };
  };
  const own = matches.filter(({ weight }) => weight !== null);
  pointOutside(
    model,
    own.map(({ weight }) => weight!),
    own.map(({ tensor }) => placeOf(tensor)),
  );
  const inputs = matches.filter(({ weight }) => weight === null);
  addInitializers(model, inputs, (message, { tensor }) => pointAt(message, placeOf(tensor)));
}

/** Turns inputs of the graph into weights, so that ONNX Runtime may treat them as constants. */
function addInitializers(
  model: Model,
  matches: readonly Match[],
  addData: (message: Message, match: Match) => void,
): void {
  const top = model.graph.message;
  top.removeChildren(matches.map(({ input }) => input!));
  for (const match of matches) {
    top.addMessage(
      GRAPH.initializer,
      initializerOf(match, (message) => addData(message, match)),
    );
  }
}

function initializerOf({ name, shape, dataType }: Match, addData: (message: Message) => void): Message {
  const message = new Message();
  for (const dim of shape) message.addInteger(TENSOR.dims, dim);
  message.addInteger(TENSOR.dataType, dataType);
  message.addBytes(TENSOR.name, name);
  addData(message);
  return message;
}

/** The deepest folder that contains all files. */
function commonFolder(files: readonly string[]): string {
  let parts = dirname(files[0] ?? '/x').split('/');
  for (const file of files) {
    const others = dirname(file).split('/');
    const differing = parts.findIndex((part, i) => part !== others[i]);
    if (differing >= 0) parts = parts.slice(0, differing);
  }
  return parts.join('/') || '/';
}

/**
 * Exporters and other tools leave files without data where weights are to come from elsewhere; computing with them
 * gives wrong results without an error. UNKNOWN_TENSOR for a file that is nothing but a hole, UNEXPECTED_EOF for data
 * that leave their file. Zeros are data: a file system may store them as holes.
 */
async function refusePlaceholder(model: Model, weight: Weight, external: ExternalFiles): Promise<void> {
  const { name, byteLength } = weight.info;
  if (byteLength === 0) return;
  const file = await external.file(weight);
  const { offset, length } = external.place(weight);
  const size = await sizeOf(file, external.calls);
  const refused = (code: 'UNEXPECTED_EOF' | 'UNKNOWN_TENSOR', what: string) =>
    new FastSafetensorsError(code, `${what}; pass the weights with the option weights`, {
      path: file,
      tensor: name,
      offset,
    });
  if (offset + length > size) {
    const ends = `ends at byte ${offset + length}, but the file has ${size}${await noData(file)}`;
    throw refused('UNEXPECTED_EOF', `${file}: weight "${name}" of ${model.path} ${ends}`);
  }
  if (!(await external.isHole(weight))) return;
  const what = `a hole in the file system and nothing else, where weight "${name}" of ${model.path} should be`;
  throw refused('UNKNOWN_TENSOR', `${file}: ${what}`);
}

async function sizeOf(path: string, calls?: FileCalls): Promise<number> {
  const { size } = await stat(path, calls).catch((cause) => {
    throw ioError('read', path, cause);
  });
  return size;
}
