import { basename } from 'node:path';
import { entriesOf } from '../../src/base/checks.js';
import { canConvert, isFloating } from '../../src/base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';
import type { FileCalls } from '../../src/base/waiting.js';
import { isReturned, MAX_SHAPE_BYTES, type Model, type Weight } from '../../src/models/onnx/graph.js';
import type { Message } from '../../src/models/onnx/protobuf.js';
import { DIM, GRAPH, nameOfType, SHAPE, TENSOR_TYPE, TYPE, VALUE_INFO } from '../../src/models/onnx/schema.js';
import {
  describeType,
  type ExternalPlace,
  externalPlace,
  packedName,
  resolveLocation,
  type TensorInfo,
} from '../../src/models/onnx/tensor-proto.js';
import { fileCall, native } from '../../src/native/addon.js';
import type { SourceTensor } from './weights.js';

/** What found no partner when a model's weights were looked up in the files. */
export interface Unmatched {
  /** Names of weights of the model. */
  readonly model: readonly string[];
  /** Names of tensors of the files. */
  readonly weights: readonly string[];
}

/** What needs a tensor: a weight of the model, or an input of its graph. */
interface Wanted extends Pick<TensorInfo, 'name' | 'dtype' | 'dataType' | 'shape' | 'byteLength'> {
  readonly weight: Weight | null;
  readonly input: Message | null;
  /** Whether its name means it: of one that several graphs define, only the outermost's own can be meant. */
  readonly hasName: boolean;
}

/**
 * With the tensor that takes its place: of its dtype and shape, or the very bytes that its external data point at.
 * @internal
 */
export interface Match extends Wanted {
  readonly tensor: SourceTensor;
}

/** { name of a weight in the model: name of its tensor in the files } */
export type WeightNames = Readonly<Record<string, string>> | ReadonlyMap<string, string>;

/** @internal */
export interface MatchOptions {
  readonly names?: WeightNames;
  readonly allowUnmatched?: boolean;
  /** Match only by the place that external data point at. For files that the model names: equal names mean nothing. */
  readonly byPlaceOnly?: boolean;
}

/** Bytes. Smaller tensors without a partner are constants of the graph rather than weights, and not reported. */
const NOTABLE_BYTES = 1024;

/** UNKNOWN_TENSOR: weights of the model have no tensor. `unmatched` lists both sides. */
export class UnmatchedWeightsError extends FastSafetensorsError {
  readonly unmatched: Unmatched;
  constructor(message: string, unmatched: Unmatched, path?: string) {
    super('UNKNOWN_TENSOR', message, { path });
    this.unmatched = unmatched;
  }
}

/** Where the external data of a model are. @internal */
export class ExternalFiles {
  readonly #places = new Map<Weight, ExternalPlace>();
  readonly #files = new Map<string, Promise<string>>();
  readonly #found = new Map<string, string | undefined>(); // by location; undefined for what is not there
  readonly #holes = new Map<string, Promise<boolean>>();
  readonly #model: Model;
  /** False for a model in memory: its locations are relative to nothing. */
  readonly onDisk: boolean;

  readonly #options: { followLinks?: boolean; calls?: FileCalls };

  constructor(model: Model, onDisk: boolean, options: { followLinks?: boolean; calls?: FileCalls }) {
    this.#options = options;
    this.#model = model;
    this.onDisk = onDisk;
  }

  get calls(): FileCalls | undefined {
    return this.#options.calls;
  }

  /** As the model has it; edits of the model come later. TENSOR_INVALID_INFO. */
  place(weight: Weight): ExternalPlace {
    let place = this.#places.get(weight);
    if (!place) {
      place = externalPlace(weight.tensor, weight.info, this.#model.path);
      this.#places.set(weight, place);
    }
    return place;
  }

  /** The file, links followed. UNSAFE_SHARD_PATH, MISSING_SHARD. */
  async file(weight: Weight): Promise<string> {
    const { location } = this.place(weight);
    let file = this.#files.get(location);
    if (!file) {
      if (!this.onDisk) {
        const { name } = weight.info;
        const message =
          `${this.#model.path}: tensor "${name}" has its data in ${JSON.stringify(location)}, but a model in memory ` +
          'has no folder: pass its path, or sessionOptions.externalData';
        throw new FastSafetensorsError('MISSING_SHARD', message, { tensor: name });
      }
      file = resolveLocation(location, this.#model.path, weight.info.name, this.#options);
      this.#files.set(location, file);
    }
    return file;
  }

  /** Whether the file has no data at all, only a hole: surely a placeholder. IO_ERROR. */
  async isHole(weight: Weight): Promise<boolean> {
    const file = await this.file(weight);
    let isHole = this.#holes.get(file);
    if (!isHole) {
      isHole = fileCall('the data of', file, () => native().isHole(file), this.calls);
      this.#holes.set(file, isHole);
    }
    return isHole;
  }

  /** Looks the files of weights of a model on disk up, for tensorAt(). */
  async lookUp(weights: readonly Weight[]): Promise<void> {
    for (const weight of weights) {
      const { location } = this.place(weight);
      if (!this.#found.has(location)) this.#found.set(location, await this.file(weight).catch(() => undefined));
    }
  }

  /**
   * The tensor whose very bytes the external data of a weight are, among those at their offset. Of a model in memory
   * only the file's name can agree, so that it must be one tensor. Never one that was converted.
   */
  tensorAt(weight: Weight, candidates: readonly SourceTensor[]): SourceTensor | undefined {
    const { location, offset, length } = this.place(weight);
    // Nothing is at the place of a weight without bytes.
    if (length !== weight.info.byteLength || length === 0) return undefined;
    const sameRange = candidates.filter((tensor) => tensor.offset === offset && tensor.byteLength === length);
    if (sameRange.length === 0) return undefined;
    if (!this.onDisk) {
      const sameFile = sameRange.filter(({ path }) => basename(path) === basename(location));
      return sameFile.length === 1 ? sameFile[0] : undefined;
    }
    const file = this.#found.get(location);
    return sameRange.find(({ path }) => path === file);
  }
}

/**
 * Finds the tensor of each weight of the model: the one that `names` says; else the one that its external data point
 * at; else the one of the same name, or of the name that split-onnx gives to a type that safetensors lacks. A place in
 * a model in memory counts less than a name. On return every match agrees in dtype and shape, those by place in their
 * bytes. INVALID_ARGUMENT for `names` that name nothing, TENSOR_INVALID_INFO for dtypes and shapes that differ,
 * UNKNOWN_TENSOR when a weight with external data, or every weight, has no partner. @internal
 */
export async function matchWeights(
  model: Model,
  external: ExternalFiles,
  sources: ReadonlyMap<string, SourceTensor>,
  { names = {}, allowUnmatched = false, byPlaceOnly = false }: MatchOptions,
): Promise<{ matches: Match[]; unmatched: Unmatched }> {
  const wanted = wantedTensors(model);
  const mapping = new Map(entriesOf<string, string>(names, 'names', EXPECTED_NAMES));
  checkNames(mapping, wanted, sources);
  const byOffset = groupBy(sources.values(), ({ offset }) => offset);
  if (external.onDisk) await external.lookUp(wanted.flatMap(({ weight }) => (weight?.info.external ? [weight] : [])));

  const matches: Match[] = [];
  const left: Wanted[] = [];
  for (const want of wanted) {
    const { weight, hasName, name } = want;
    const candidates = weight?.info.external ? byOffset.get(external.place(weight).offset) : undefined;
    const atPlace = candidates && external.tensorAt(weight!, candidates);
    const mapped = hasName && mapping.has(name) ? sources.get(mapping.get(name)!) : undefined;
    const named = hasName && !byPlaceOnly ? sourceOfName(want, sources) : undefined;
    const isSurer = named && !external.onDisk && isSame(want, named);
    const tensor = mapped ?? (isSurer ? named : (atPlace ?? named));
    if (tensor === undefined) {
      left.push(want);
    } else {
      if (tensor !== atPlace) checkSame(model, want, tensor);
      const { dtype, dataType, shape, byteLength, input } = want;
      matches.push({ name, dtype, dataType, shape, byteLength, weight, input, hasName, tensor });
    }
  }

  const used = new Set(matches.map(({ tensor }) => tensor.name));
  const unused = [...sources.values()].filter(({ name }) => !used.has(name));
  const missing = left.filter(({ weight }) => weight && isNotable(weight));
  const unmatched = { model: missing.map(({ name }) => name), weights: unused.map(({ name }) => name) };
  if (byPlaceOnly) return { matches, unmatched: { model: [], weights: unmatched.weights } };
  const alike = new Alike(unused);
  if (sources.size > 0 && matches.length === 0) throw mismatch(model, 'no weight', missing, unused, alike, unmatched);
  if (!allowUnmatched) {
    const absent = missing.filter(({ weight }) => weight!.info.external);
    // The model has data for the others, but a tensor left over that would fit may be meant for one under another name.
    const suspects = absent.length > 0 ? absent : missing.filter((want) => alike.to(want));
    if (suspects.length > 0) {
      const what = `${suspects.length} of ${wanted.length} weights`;
      throw mismatch(model, what, suspects, unused, alike, unmatched);
    }
  }
  return { matches, unmatched };
}

function sourceOfName({ name, dtype, dataType }: Wanted, sources: ReadonlyMap<string, SourceTensor>) {
  return (dtype === undefined ? sources.get(packedName(name, dataType)) : undefined) ?? sources.get(name);
}

/** Initializers and Constants of all graphs, and inputs of the outermost one with a fixed shape and no initializer. */
function wantedTensors(model: Model): Wanted[] {
  const own = new Set<string>();
  const wanted: Wanted[] = [];
  const count = countNames(model);
  for (const weight of model.weights) {
    const { info, graph } = weight;
    if (graph.path === '') own.add(info.name);
    const hidden = graph.path.startsWith('function ') || info.name === '' || weight.stays === 'stored in segments';
    const hasName = graph.path === '' || count.get(info.name) === 1;
    if (hidden || (!hasName && !info.external)) continue;
    wanted.push(wantedOf(info, weight, null, hasName));
  }
  for (const input of model.graph.message.children(GRAPH.input)) {
    const name = input.string(VALUE_INFO.name);
    const type = input.child(VALUE_INFO.type)?.child(TYPE.tensor);
    const dims = type?.child(TENSOR_TYPE.shape)?.children(SHAPE.dim);
    // Some exporters write -1 for a dimension that is open.
    const shape = dims?.map((dim) => dim.integer(DIM.value) ?? -1);
    if (own.has(name) || !type || !shape || shape.some((dim) => dim < 0)) continue;
    const dataType = type.integer(TENSOR_TYPE.elemType) ?? 0;
    wanted.push(wantedOf(describeType(name, dataType, shape, model.path), null, input, true));
  }
  return wanted;
}

/** Field by field, as in matchWeights: a spread of objects makes a hidden class for each, megabytes of garbage. */
function wantedOf(info: TensorInfo, weight: Weight | null, input: Message | null, hasName: boolean): Wanted {
  const { name, dtype, dataType, shape, byteLength } = info;
  return { name, dtype, dataType, shape, byteLength, weight, input, hasName };
}

/** How many weights of the model's graphs have a name. @internal */
export function countNames({ weights }: Model): ReadonlyMap<string, number> {
  const count = new Map<string, number>();
  for (const { info } of weights) count.set(info.name, (count.get(info.name) ?? 0) + 1);
  return count;
}

function isNotable({ info }: Weight): boolean {
  if (info.external) return info.byteLength > 0;
  return info.dtype !== undefined && isFloating(info.dtype) && info.byteLength >= NOTABLE_BYTES;
}

/**
 * Whether a tensor must be stored inside the model. ONNX Runtime refuses external data for a graph's own output, and
 * for shapes, which it needs while loading. @internal
 */
export function staysInside({ weight, dtype, byteLength }: Match): boolean {
  const floor = dtype && isFloating(dtype) ? NOTABLE_BYTES : MAX_SHAPE_BYTES;
  return byteLength < floor || (weight !== null && isReturned(weight));
}

const EXPECTED_NAMES = "an object or a Map from the model's names to those of the weights";

function checkNames(
  names: ReadonlyMap<string, string>,
  wanted: readonly Wanted[],
  sources: ReadonlyMap<string, SourceTensor>,
): void {
  const known = new Set(wanted.flatMap(({ name, hasName }) => (hasName ? [name] : [])));
  for (const [name, tensor] of names) {
    if (!known.has(name))
      throw new InvalidArgumentError(
        `names: the model has no weight "${name}"; expected { model's name: weights' name }`,
      );
    if (typeof tensor !== 'string' || !sources.has(tensor))
      throw new InvalidArgumentError(`names: the weights have no tensor ${JSON.stringify(tensor)} for "${name}"`);
  }
}

function isSame(want: Wanted, tensor: SourceTensor): boolean {
  return (want.dtype === tensor.dtype && sameDims(want.shape, tensor.shape)) || isPacked(want, tensor);
}

function checkSame(model: Model, want: Wanted, tensor: SourceTensor): void {
  if (isSame(want, tensor)) return;
  const sameShape = sameDims(want.shape, tensor.shape);
  const isConverted = tensor.dtype !== tensor.storedAs;
  const what =
    `${model.path}: weight "${want.name}" is ${describe(want)}, ` +
    `but tensor "${tensor.name}" of ${tensor.path} is ${describe(tensor)}` +
    (isConverted ? ` (${tensor.storedAs} in the file, converted while it was loaded)` : '');
  let how = 'the file is not of this model, or names maps the wrong one';
  if (!sameShape && sameDims(want.shape, [...tensor.shape].reverse())) {
    how =
      'it is stored transposed (exporters do that to MatMul): save it transposed, or export the model without ' +
      'constant folding';
  } else if (sameShape && want.dtype === tensor.storedAs) {
    how = `load it without the option dtype, or with dtype: '${want.dtype}'`;
  } else if (sameShape && want.dtype && canConvert(tensor.storedAs, want.dtype)) {
    how = `load it with a SafeTensorsFileLoader and dtype: '${want.dtype}', and pass the buffer as weights`;
  }
  throw new FastSafetensorsError('TENSOR_INVALID_INFO', `${what}; ${how}`, { path: tensor.path, tensor: tensor.name });
}

/** Whether a tensor has the bytes of a type that safetensors lacks, as split-onnx stores them. */
function isPacked({ dtype, dataType, byteLength }: Wanted, tensor: SourceTensor): boolean {
  const isSaid = tensor.name.endsWith(packedName('', dataType));
  return dtype === undefined && isSaid && tensor.dtype === 'U8' && tensor.byteLength === byteLength;
}

const sameDims = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((dim, i) => dim === b[i]);

const describe = ({ dtype, dataType, shape }: Partial<Wanted> & Pick<SourceTensor, 'shape'>): string =>
  `${dtype ?? (dataType === undefined ? '' : nameOfType(dataType))} [${shape.join(', ')}]`;

/** Finds tensors that could be weights, by dtype and shape. */
class Alike {
  readonly #tensors = new Map<string, SourceTensor>();

  constructor(tensors: readonly SourceTensor[]) {
    for (const tensor of tensors) {
      const packedAs = tensor.dtype === 'U8' ? /\.\w+$/.exec(tensor.name)?.[0] : undefined;
      for (const key of [`${tensor.dtype} ${tensor.shape}`, `${packedAs} ${tensor.byteLength}`])
        if (!this.#tensors.has(key)) this.#tensors.set(key, tensor);
    }
  }

  /** A tensor of the shape of a weight, or of that transposed. */
  to({ dtype, dataType, shape, byteLength }: Wanted): { tensor: SourceTensor; isTransposed: boolean } | undefined {
    const same = this.#tensors.get(dtype ? `${dtype} ${shape}` : `${packedName('', dataType)} ${byteLength}`);
    if (same) return { tensor: same, isTransposed: false };
    const transposed = shape.length > 1 ? this.#tensors.get(`${dtype} ${[...shape].reverse()}`) : undefined;
    return transposed && { tensor: transposed, isTransposed: true };
  }
}

function groupBy<K, T>(items: Iterable<T>, keyOf: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.get(key);
    if (group) group.push(item);
    else groups.set(key, [item]);
  }
  return groups;
}

const LISTED = 10;

function mismatch(
  model: Model,
  what: string,
  missing: readonly Wanted[],
  unused: readonly SourceTensor[],
  alike: Alike,
  unmatched: Unmatched,
): UnmatchedWeightsError {
  const list = <T>(items: readonly T[], describe: (item: T) => string): string => {
    const first = items.slice(0, LISTED).map(describe).join(', ');
    return items.length > LISTED ? `${first} and ${items.length - LISTED} more` : first;
  };
  const hints = list(missing, (want) => {
    const like = alike.to(want);
    const hint = like ? ` (${like.isTransposed ? 'transposed, ' : ''}like "${like.tensor.name}"?)` : '';
    return `"${want.name}" ${describe(want)}${hint}`;
  });
  const rest = list(unused, (tensor) => `"${tensor.name}" ${describe(tensor)}`);
  const found = what === 'no weight' ? 'no weight of the model has a tensor' : `${what} of the model have no tensor`;
  const example = `{ "${missing[0]?.name ?? "model's name"}": "${unused[0]?.name ?? "weights' name"}" }`;
  return new UnmatchedWeightsError(
    `${model.path}: ${found} in the weights: ${hints || 'none'}; ` +
      `tensors that nothing took: ${rest || 'none'}; say which is which with names: ${example}, ` +
      'or let the model keep its own with allowUnmatched: true',
    unmatched,
    model.path,
  );
}
