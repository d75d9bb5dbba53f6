import { basename } from 'node:path';
import { canConvert, type DTypeName, isFloating } from '../../src/base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';
import { type Model, outputNames, type Weight } from '../../src/models/onnx/graph.js';
import type { Message } from '../../src/models/onnx/protobuf.js';
import { DIM, dtypeOf, GRAPH, SHAPE, TENSOR_TYPE, TYPE, VALUE_INFO } from '../../src/models/onnx/schema.js';
import { externalPlace, resolveLocation } from '../../src/models/onnx/tensor-proto.js';
import { native, settled } from '../../src/native/addon.js';
import type { SourceTensor } from './weights.js';

/** What found no partner when a model's weights were looked up in the files. */
export interface Unmatched {
  /** Names of weights of the model. */
  readonly model: readonly string[];
  /** Names of tensors of the files. */
  readonly weights: readonly string[];
}

/** What needs a tensor: a weight of the model, or an input of its graph. */
interface Wanted {
  readonly name: string;
  readonly dtype: DTypeName | undefined;
  readonly dataType: number;
  readonly shape: readonly number[];
  readonly weight: Weight | null;
  readonly input: Message | null;
  /** Whether its name means it: of one that several graphs define, only the outermost's own can be meant. */
  readonly hasName: boolean;
}

/** With the tensor that takes its place. */
export interface Match extends Wanted {
  readonly tensor: SourceTensor;
}

/** { name of a weight in the model: name of its tensor in the files } */
export type WeightNames = Readonly<Record<string, string>>;

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

/** Where the external data of a model are. */
export class ExternalFiles {
  readonly #files = new Map<string, Promise<string>>();
  readonly #holes = new Map<string, Promise<boolean>>();
  readonly #model: Model;
  /** False for a model in memory: its locations are relative to nothing. */
  readonly #onDisk: boolean;

  readonly #options: { followLinks?: boolean };

  constructor(model: Model, onDisk: boolean, options: { followLinks?: boolean }) {
    this.#options = options;
    this.#model = model;
    this.#onDisk = onDisk;
  }

  place(weight: Weight): { location: string; offset: number; length: number } {
    return externalPlace(weight.tensor, weight.info, this.#model.path);
  }

  /** The file, links followed. UNSAFE_SHARD_PATH, MISSING_SHARD. */
  async file(weight: Weight): Promise<string> {
    const { location } = this.place(weight);
    let file = this.#files.get(location);
    if (!file) {
      if (!this.#onDisk) {
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
      isHole = settled(native().isHole(file));
      this.#holes.set(file, isHole);
    }
    return isHole;
  }

  /** Whether the external data of a weight are the very bytes of this tensor; never for one that was converted. */
  async isAt(weight: Weight, tensor: SourceTensor): Promise<boolean> {
    const { location, offset, length } = this.place(weight);
    if (offset !== tensor.offset || length !== tensor.byteLength) return false;
    if (basename(location) === basename(tensor.path) && !this.#onDisk) return true;
    return this.file(weight).then(
      (file) => file === tensor.path,
      () => false,
    );
  }
}

/**
 * Finds the tensor of each weight of the model: the one that `names` says; else the one that its external data point
 * at; else the one of the same name. On return every match agrees in dtype and shape. INVALID_ARGUMENT for `names` that
 * name nothing, TENSOR_INVALID_INFO for dtypes and shapes that differ, UNKNOWN_TENSOR when a weight with external data,
 * or every weight, has no partner.
 */
export async function matchWeights(
  model: Model,
  external: ExternalFiles,
  sources: ReadonlyMap<string, SourceTensor>,
  { names = {}, allowUnmatched = false, byPlaceOnly = false }: MatchOptions,
): Promise<{ matches: Match[]; unmatched: Unmatched }> {
  const wanted = wantedTensors(model);
  checkNames(names, wanted, sources);
  const byOffset = groupBy(sources.values(), ({ offset }) => offset);

  const matches: Match[] = [];
  const left: Wanted[] = [];
  for (const want of wanted) {
    let tensor = want.hasName && Object.hasOwn(names, want.name) ? sources.get(names[want.name]!) : undefined;
    if (!tensor && want.weight?.info.external) {
      for (const candidate of byOffset.get(external.place(want.weight).offset) ?? []) {
        if (await external.isAt(want.weight, candidate)) tensor = candidate;
      }
    }
    if (!byPlaceOnly && want.hasName) tensor ??= sources.get(want.name);
    if (tensor) {
      checkSame(model, want, tensor);
      matches.push({ ...want, tensor });
    } else {
      left.push(want);
    }
  }

  const used = new Set(matches.map(({ tensor }) => tensor.name));
  const unused = [...sources.values()].filter(({ name }) => !used.has(name));
  const missing = left.filter(({ weight }) => weight && isNotable(weight));
  const unmatched = { model: missing.map(({ name }) => name), weights: unused.map(({ name }) => name) };
  if (byPlaceOnly) return { matches, unmatched: { model: [], weights: unmatched.weights } };
  if (sources.size > 0 && matches.length === 0) throw mismatch(model, 'no weight', missing, unused, unmatched);
  if (!allowUnmatched) {
    const absent = missing.filter(({ weight }) => weight!.info.external);
    // The model has data for the others, but a tensor left over that would fit may be meant for one under another name.
    const alike = (want: Wanted) => unused.some((tensor) => likeness(want, tensor) !== '');
    const suspects = absent.length > 0 ? absent : missing.filter(alike);
    if (suspects.length > 0) {
      throw mismatch(model, `${suspects.length} of ${wanted.length} weights`, suspects, unused, unmatched);
    }
  }
  return { matches, unmatched };
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
    const { name, dtype, dataType, shape } = info;
    wanted.push({ name, dtype, dataType, shape, weight, input: null, hasName });
  }
  for (const input of model.graph.message.children(GRAPH.input)) {
    const name = input.string(VALUE_INFO.name);
    const type = input.child(VALUE_INFO.type)?.child(TYPE.tensor);
    const dims = type?.child(TENSOR_TYPE.shape)?.children(SHAPE.dim);
    if (own.has(name) || !type || !dims?.every((dim) => dim.integer(DIM.value) !== undefined)) continue;
    const dataType = type.integer(TENSOR_TYPE.elemType) ?? 0;
    const shape = dims.map((dim) => dim.integer(DIM.value)!);
    wanted.push({ name, dtype: dtypeOf(dataType), dataType, shape, weight: null, input, hasName: true });
  }
  return wanted;
}

/** How many weights of the model's graphs have a name. */
export function countNames({ weights }: Model): ReadonlyMap<string, number> {
  const count = new Map<string, number>();
  for (const { info } of weights) count.set(info.name, (count.get(info.name) ?? 0) + 1);
  return count;
}

function isNotable({ info }: Weight): boolean {
  return info.external || (info.dtype !== undefined && isFloating(info.dtype) && info.byteLength >= NOTABLE_BYTES);
}

/**
 * Whether a tensor must be stored inside the model. ONNX Runtime refuses external data for a graph's own output, and
 * for shapes, which it needs while loading.
 */
export function staysInside({ weight, tensor }: Match): boolean {
  const floor = isFloating(tensor.dtype) ? NOTABLE_BYTES : 64 * 1024;
  if (tensor.byteLength < floor) return true;
  if (!weight) return false;
  return (
    outputNames(weight.graph).includes(weight.info.name) && (weight.node !== undefined || weight.graph.path !== '')
  );
}

function checkNames(names: WeightNames, wanted: readonly Wanted[], sources: ReadonlyMap<string, SourceTensor>): void {
  const known = new Set(wanted.flatMap(({ name, hasName }) => (hasName ? [name] : [])));
  for (const [name, tensor] of Object.entries(names)) {
    if (!known.has(name))
      throw new InvalidArgumentError(
        `names: the model has no weight "${name}"; expected { model's name: weights' name }`,
      );
    if (typeof tensor !== 'string' || !sources.has(tensor))
      throw new InvalidArgumentError(`names: the weights have no tensor ${JSON.stringify(tensor)} for "${name}"`);
  }
}

function checkSame(model: Model, want: Wanted, tensor: SourceTensor): void {
  const sameShape = sameDims(want.shape, tensor.shape);
  if (sameShape && want.dtype === tensor.dtype) return;
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

const sameDims = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((dim, i) => dim === b[i]);

const describe = ({ dtype, shape }: { dtype?: DTypeName; shape: readonly number[] }): string =>
  `${dtype ?? 'of a type that safetensors lacks'} [${shape.join(', ')}]`;

/** Whether a tensor could be a weight, by dtype and shape; '' when it could not. */
function likeness(want: Wanted, tensor: SourceTensor): '' | 'same shape' | 'transposed' {
  if (want.dtype !== tensor.dtype) return '';
  if (sameDims(want.shape, tensor.shape)) return 'same shape';
  return want.shape.length > 1 && sameDims(want.shape, [...tensor.shape].reverse()) ? 'transposed' : '';
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
  unmatched: Unmatched,
): UnmatchedWeightsError {
  const list = (items: readonly string[]): string =>
    items.length > LISTED ? `${items.slice(0, LISTED).join(', ')} and ${items.length - LISTED} more` : items.join(', ');
  const hints = missing.map((want) => {
    const like = unused.find((tensor) => likeness(want, tensor) !== '');
    const hint = like ? ` (${likeness(want, like) === 'transposed' ? 'transposed, ' : ''}like "${like.name}"?)` : '';
    return `"${want.name}" ${describe(want)}${hint}`;
  });
  const rest = unused.map((tensor) => `"${tensor.name}" ${describe(tensor)}`);
  const found = what === 'no weight' ? 'no weight of the model has a tensor' : `${what} of the model have no tensor`;
  const example = `{ "${missing[0]?.name ?? "model's name"}": "${unused[0]?.name ?? "weights' name"}" }`;
  return new UnmatchedWeightsError(
    `${model.path}: ${found} in the weights: ${list(hints) || 'none'}; ` +
      `tensors that nothing took: ${list(rest) || 'none'}; say which is which with names: ${example}, ` +
      'or let the model keep its own with allowUnmatched: true',
    unmatched,
    model.path,
  );
}
