import { isMap } from 'node:util/types';
import { entriesOf, fail, isPlain } from '../../src/base/checks.js';
import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';
import { nearest } from '../../src/base/nearest.js';
import { CallWatch } from '../../src/base/waiting.js';
import type { DeviceTensor } from '../../src/device/device-tensor.js';
import type { LoadReport } from '../../src/loaders/load-report.js';
import { ownedBy, PARALLEL_CHECKS, type ParallelOptions } from '../../src/loaders/options.js';
import { ParallelLoader } from '../../src/loaders/parallel-loader.js';
import type { WeightSpec } from '../../src/models/tfjs/model-json.js';
import type { Files } from '../../src/safetensors/files.js';
import { tensorError } from '../tensor-error.js';
import { ruleOf } from './dtypes.js';
import type { Wish } from './framework.js';

/** From the model's names of weights to those in the files; a name that an object lacks is the same in both. */
export type WeightNames = Readonly<Record<string, string>> | ReadonlyMap<string, string> | ((name: string) => string);

/** All options of loaders except those that the model decides. */
export type WeightOptions = Omit<
  ParallelOptions,
  'files' | 'framework' | 'filter' | 'dtype' | 'dtypePolicy' | 'borrow' | 'order'
>;

const { files, framework, filter, dtype, borrow, order, ...LOADING } = PARALLEL_CHECKS;
const OTHERS = { files, framework, filter, dtype, borrow, order };
/** For checkOptions: options of loaders that the model decides. */
export const DECIDED = ownedBy('loaders, which the model decides itself', OTHERS);
/** For checkOptions: the options of WeightOptions, and `names`. */
export const WEIGHT_CHECKS = { ...LOADING, names: checkNames };

/** A loaded tensor, and what the model wants of it. */
interface ModelWeight {
  /** The weights that are made from it: several if `names` says so; none for a model that lists no weights. */
  readonly specs: readonly WeightSpec[];
  /** Disposed when the next one is asked for; an adapter that adopted it keeps the memory. */
  readonly tensor: DeviceTensor;
  readonly wish: Wish;
}

const EXPECTED_NAMES = "an object, a Map or a function from the model's names to those in the files";

function checkNames(names: unknown, name: string): void {
  const byName = typeof names === 'object' && names !== null && (isMap(names) || isPlain(names));
  if (typeof names !== 'function' && !byName) fail(name, EXPECTED_NAMES, names);
}

/** The name in the files of a weight of the model. */
function namesOf(names: WeightNames): (name: string) => string {
  if (typeof names === 'function') return names;
  const byName = new Map(entriesOf<string, string>(names, 'names', EXPECTED_NAMES));
  return (name) => (byName.has(name) ? byName.get(name)! : name);
}

/** Matches the weights of a model with the tensors of its files. */
export class WeightMatch {
  /** By the name in the files. */
  readonly #weights = new Map<string, WeightSpec[]>();
  readonly #found = new Set<string>();
  readonly #unused: string[] = [];

  /** INVALID_ARGUMENT for a name that is no string. */
  constructor(specs: readonly WeightSpec[], names: WeightNames | undefined) {
    const nameOf = namesOf(names ?? {});
    for (const spec of specs) {
      const name = nameOf(spec.name);
      if (typeof name !== 'string') {
        const expected = `the name in the files of the weight "${spec.name}"`;
        throw new InvalidArgumentError(`names: expected ${expected}, found ${typeof name}`);
      }
      this.#weights.set(name, [...(this.#weights.get(name) ?? []), spec]);
    }
  }

  /** Adds a tensor of the files. Returns whether the model takes it: one without weights takes all. Throws as `of`. */
  add(tensor: Stored): boolean {
    const { specs } = this.of(tensor);
    if (specs.length > 0) this.#found.add(tensor.name);
    else this.#unused.push(tensor.name);
    return specs.length > 0 || this.#weights.size === 0;
  }

  /** The weights that are made from a tensor, and what they want of it. Throws as commonWish. */
  of(tensor: Stored): { specs: readonly WeightSpec[]; wish: Wish } {
    const specs = this.#weights.get(tensor.name) ?? [];
    return { specs, wish: commonWish(specs, tensor) };
  }

  /** UNKNOWN_TENSOR when a weight is not among the added tensors, listing what did not match on either side. */
  checkComplete(): void {
    const missing = [...this.#weights.keys()].filter((name) => !this.#found.has(name));
    if (missing.length === 0) return;
    const list = (names: string[]) => {
      const first = names.slice(0, 5).map((name) => `"${name}"`);
      return `${first.join(', ') || 'none'}${names.length > 5 ? ` and ${names.length - 5} more` : ''}`;
    };
    const near = nearest(missing[0]!, this.#unused);
    const hint = near === undefined ? '' : `, as { ${JSON.stringify(missing[0])}: ${JSON.stringify(near)} }`;
    const message =
      `the files lack ${missing.length} of the model's ${this.#weights.size} weights: ${list(missing)}; ` +
      `tensors that the model does not use: ${list(this.#unused)}; give the names that differ with { names }${hint}`;
    throw new FastSafetensorsError('UNKNOWN_TENSOR', message, { tensor: missing[0] });
  }
}

/** The limits of a model's load, from its first look at a file on. */
export function watchOf(options: WeightOptions): CallWatch {
  return new CallWatch(options, options.signal ? [options.signal] : []);
}

/**
 * Loads the weights of a model in the order of files and offsets; for a model that lists none, all tensors of the
 * files. Rejects, before the first tensor, with the codes of WeightMatch; and with what the loader rejects with.
 */
export async function* iterateWeights(
  specs: readonly WeightSpec[],
  files: Files,
  names: WeightNames | undefined,
  options: WeightOptions,
  watch: CallWatch,
  onReport?: (report: LoadReport) => void,
): AsyncGenerator<ModelWeight, void, void> {
  const match = new WeightMatch(specs, names);
  const timeoutMs = options.timeoutMs && Math.max(watch.leftMs, 0.001);
  // Not mapped: TensorFlow copies what does not lie at multiples of 64.
  const loading = { mmap: false, ...options, timeoutMs, files };
  const loader = new ParallelLoader({ ...loading, filter: (_name, frame) => match.add(frame) });
  let checked = false;
  const check = () => {
    if (!checked) match.checkComplete();
    checked = true; // once: every name passes the filter before the first tensor comes
  };
  try {
    for await (const [, tensor] of loader.iterateWeights()) {
      try {
        check();
        yield { ...match.of(tensor), tensor };
      } finally {
        tensor.dispose(); // an adapter that adopted it keeps the memory
      }
    }
    check();
    onReport?.(loader.report);
  } finally {
    await loader.close();
  }
}

/** What the files tell of a tensor. */
export type Stored = Pick<DeviceTensor, 'name' | 'dtype' | 'shape'>;

/**
 * What all weights that are made from one tensor want of it. TENSOR_INVALID_INFO or UNSUPPORTED_DTYPE when the tensor
 * is not what they expect, and when they want different things of it.
 */
function commonWish(specs: readonly WeightSpec[], tensor: Stored): Wish {
  const [wish = {}, ...others] = specs.map((spec) => wishOf(spec, tensor));
  const told = (spec: WeightSpec, { affine }: Wish) => JSON.stringify([spec.dtype, affine]);
  const different = others.findIndex((other, i) => told(specs[i + 1]!, other) !== told(specs[0]!, wish));
  if (different < 0) return wish;
  const both = `"${specs[0]!.name}" and "${specs[different + 1]!.name}"`;
  const what = `is one for two weights: ${both} share it by { names }, but have different dtypes or quantizations`;
  throw tensorError('UNSUPPORTED_DTYPE', tensor, `${what}; store it once for each`);
}

/** The dtype of a quantized weight in the files. */
const STORED = { uint8: 'U8', uint16: 'U16', float16: 'F16' } as const;

/** What one weight wants of a stored tensor. */
function wishOf(spec: WeightSpec, tensor: Stored): Wish {
  const { name, dtype, shape, quantization } = spec;
  const butWeight = `is ${tensor.dtype} [${tensor.shape}], but the weight "${name}"`;
  if (dtype === 'string') {
    if (tensor.dtype === 'U8') return {};
    const what = `${butWeight} holds strings, expected U8 as split-tfjs writes them`;
    throw tensorError('UNSUPPORTED_DTYPE', tensor, what);
  }
  if (!same(shape, tensor.shape)) {
    const transposed = same([...shape].reverse(), tensor.shape);
    const hint = transposed ? ' (it looks transposed: PyTorch keeps Linear weights so)' : '';
    throw tensorError('TENSOR_INVALID_INFO', tensor, `${butWeight} of the model has the shape [${shape}]${hint}`);
  }
  const { scale, min } = quantization ?? {};
  const quantized = scale !== undefined && min !== undefined;
  if (quantized && tensor.dtype === STORED[quantization!.dtype]) {
    return { dtype: dtype as 'float32' | 'int32', affine: { scale, min } };
  }
  // Other files may have the values; but such integers are quantized numbers, of another width than the model's.
  const isOtherWidth = quantized && (tensor.dtype === 'U8' || tensor.dtype === 'U16');
  if (ruleOf(tensor).dtype === dtype && !isOtherWidth) return {};
  const how = quantized ? `, quantized as ${quantization!.dtype}` : '';
  throw tensorError('UNSUPPORTED_DTYPE', tensor, `${butWeight} of the model is ${dtype}${how}`);
}

function same(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i]);
}

/** Strings, each stored as its length in 4 bytes and its bytes. TENSOR_INVALID_INFO when they do not fill `bytes`. */
export function decodeStrings(bytes: Uint8Array, spec: WeightSpec): Uint8Array[] {
  const count = spec.shape.reduce((product, size) => product * size, 1);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const strings: Uint8Array[] = [];
  let at = 0;
  for (let i = 0; i < count; ++i) {
    const end = at + 4 <= bytes.length ? at + 4 + view.getUint32(at, true) : Number.POSITIVE_INFINITY;
    if (end > bytes.length) break;
    strings.push(bytes.slice(at + 4, end));
    at = end;
  }
  if (strings.length === count && at === bytes.length) return strings;
  const found = `has ${strings.length} strings in ${at} bytes`;
  throw tensorError('TENSOR_INVALID_INFO', spec, `${found}, expected ${count} in ${bytes.length}`);
}
