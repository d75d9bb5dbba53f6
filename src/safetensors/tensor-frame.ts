import { hint } from '../base/checks.js';
import { DTYPE_BITS, type DTypeName } from '../base/dtype.js';
import { InvalidArgumentError } from '../base/errors.js';

/**
 * What is taken of one dimension: an index takes one element and drops the dimension, a range keeps it. As in Python,
 * `stop` is excluded, negative values count from the end, and a negative `step` goes backwards. Defaults: everything,
 * step 1.
 */
export type SliceRange = number | { readonly start?: number; readonly stop?: number; readonly step?: number };

/**
 * Runs of `length` bytes at regular distances. `offset` is that of the run at index 0 of every dimension, from the
 * start of the file's data; dimensions are outermost first, strides in bytes and possibly negative.
 */
export interface RunGrid {
  readonly offset: number;
  readonly length: number;
  readonly dims: readonly { readonly count: number; readonly stride: number }[];
}

/** Element (i, j, …) of a slice lies `offset + i * strides[0] + j * strides[1] + …` elements behind `base`. */
interface Layout {
  /** The whole tensor's first byte, from the start of the file's data. */
  readonly base: number;
  readonly offset: number;
  readonly strides: readonly number[];
}

/** A TensorFrame as plain values. */
export interface TensorFrameJson {
  name: string;
  dtype: DTypeName;
  shape: readonly number[];
  dataOffsets: readonly [number, number];
  byteLength: number;
}

/** What a header says of one tensor, or of a slice of it. Immutable. */
export class TensorFrame {
  /** The tensor's name, also for a slice. */
  readonly name: string;
  readonly dtype: DTypeName;
  /** Dimensions, outermost first; [] for a scalar. */
  readonly shape: readonly number[];
  /**
   * [begin, end) in bytes from the start of the file's data: the smallest span that covers all elements, [begin, begin]
   * without any. It is longer than `byteLength` for a slice that is not contiguous.
   */
  readonly dataOffsets: readonly [number, number];
  /** Bytes of the elements alone. */
  readonly byteLength: number;
  readonly #layout: Layout;

  /** @internal Frames come from SafeTensorsMetadata; `layout` is given for slices only. */
  constructor(
    name: string,
    dtype: DTypeName,
    shape: readonly number[],
    dataOffsets: readonly [number, number],
    layout?: Layout,
  ) {
    this.name = name;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.dataOffsets = Object.freeze([dataOffsets[0], dataOffsets[1]] as const);
    this.byteLength = layout ? bytesOf(elementsOf(shape), dtype) : dataOffsets[1] - dataOffsets[0];
    this.#layout = layout ?? { base: dataOffsets[0], offset: 0, strides: stridesOf(shape) };
  }

  /** Whether the bytes lie together and in order, so that one read of `dataOffsets` gets them. */
  get isContiguous(): boolean {
    return this.byteLength === 0 || innerRun(this.shape, this.#layout.strides).outer === 0;
  }

  /**
   * Python's slicing, one argument per dimension; dimensions without one are kept whole. Nothing is read. A range that
   * leaves the tensor is clamped. INVALID_ARGUMENT, naming the tensor, for an index outside, a step of 0, too many
   * arguments, values that are no integers, and runs of a sub-byte dtype that do not begin and end on whole bytes.
   */
  slice(...ranges: SliceRange[]): TensorFrame {
    if (ranges.length > this.shape.length) {
      throw this.#invalid(`${ranges.length} ranges for ${this.shape.length} dimensions`);
    }
    const { base, strides } = this.#layout;
    let { offset } = this.#layout;
    const shape: number[] = [];
    const newStrides: number[] = [];
    for (const [dimension, size] of this.shape.entries()) {
      const range = dimension < ranges.length ? ranges[dimension] : {};
      const stride = strides[dimension]!;
      if (typeof range === 'number') {
        offset += this.#index(range, size, dimension) * stride;
        continue;
      }
      const { start, step, length } = this.#range(range, size, dimension);
      if (length > 0) offset += start * stride;
      shape.push(length);
      newStrides.push(stride * step);
    }
    const layout = { base, offset, strides: newStrides };
    return new TensorFrame(this.name, this.dtype, shape, this.#span(shape, layout), layout);
  }

  toJSON(): TensorFrameJson {
    const { name, dtype, shape, dataOffsets, byteLength } = this;
    return { name, dtype, shape, dataOffsets, byteLength };
  }

  /**
   * The bytes of a frame that is not empty as runs in the order of its elements: one dimension of runs for each that is
   * not part of a run, those of one index left out. @internal
   */
  grid(): RunGrid {
    const bits = DTYPE_BITS[this.dtype];
    const { base, offset, strides } = this.#layout;
    const { outer, elements } = innerRun(this.shape, strides);
    const toBytes = (count: number) => (count * bits) / 8;
    const dims: { count: number; stride: number }[] = [];
    for (let dimension = 0; dimension < outer; ++dimension) {
      const count = this.shape[dimension]!;
      if (count > 1) dims.push({ count, stride: toBytes(strides[dimension]!) });
    }
    return { offset: base + toBytes(offset), length: toBytes(elements), dims };
  }

  #index(value: number, size: number, dimension: number): number {
    this.#checkInteger(value, 'index', dimension);
    const index = value < 0 ? value + size : value;
    if (index < 0 || index >= size) {
      throw this.#invalid(`index ${value} is outside dimension ${dimension}, which has ${size} elements`);
    }
    return index === 0 ? 0 : index;
  }

  #range(
    range: SliceRange | undefined,
    size: number,
    dimension: number,
  ): { start: number; step: number; length: number } {
    if (typeof range !== 'object' || range === null) {
      const expected = `expected a number or { start, stop, step } for dimension ${dimension}`;
      throw this.#invalid(`${expected}, found ${String(range)}`);
    }
    for (const key of Object.keys(range)) {
      if (key !== 'start' && key !== 'stop' && key !== 'step') {
        const instead = hint(key, ['start', 'stop', 'step']);
        throw this.#invalid(`the range of dimension ${dimension} has a "${key}"${instead}`);
      }
    }
    const { start, stop, step = 1 } = range as { start?: number; stop?: number; step?: number };
    this.#checkInteger(step, 'step', dimension);
    if (step === 0) throw this.#invalid(`the step of dimension ${dimension} is 0`);
    // As in PySlice_AdjustIndices: backwards, -1 stands for "before the first".
    const lowest = step > 0 ? 0 : -1;
    const highest = step > 0 ? size : size - 1;
    const bound = (value: number | undefined, whole: number, what: string) => {
      if (value === undefined) return whole;
      this.#checkInteger(value, what, dimension);
      return Math.min(Math.max(value < 0 ? value + size : value, lowest), highest);
    };
    const from = bound(start, step > 0 ? lowest : highest, 'start');
    const to = bound(stop, step > 0 ? highest : lowest, 'stop');
    const length = Math.max(0, Math.ceil((to - from) / step));
    return { start: from, step: length > 1 ? step : 1, length };
  }

  #checkInteger(value: unknown, what: string, dimension: number): asserts value is number {
    if (!Number.isSafeInteger(value)) {
      throw this.#invalid(`the ${what} of dimension ${dimension} is ${String(value)}, expected an integer`);
    }
  }

  #span(shape: readonly number[], layout: Layout): [number, number] {
    const bits = DTYPE_BITS[this.dtype];
    const toByte = (element: number) => layout.base + (element * bits) / 8;
    if (elementsOf(shape) === 0) {
      const at = Math.floor(toByte(layout.offset));
      return [at, at];
    }
    let first = layout.offset;
    let last = layout.offset;
    for (const [dimension, size] of shape.entries()) {
      const reach = (size - 1) * layout.strides[dimension]!;
      if (reach < 0) first += reach;
      else last += reach;
    }
    if (bits % 8 !== 0) {
      const { outer, elements } = innerRun(shape, layout.strides);
      const steps = layout.strides.slice(0, outer).filter((_, i) => shape[i]! > 1);
      if ([layout.offset, elements, ...steps].some((count) => (count * bits) % 8 !== 0)) {
        throw this.#invalid(`a slice of ${this.dtype}, ${bits} bits an element, would begin or end within a byte`);
      }
    }
    return [toByte(first), toByte(last + 1)];
  }

  #invalid(problem: string): InvalidArgumentError {
    return new InvalidArgumentError(`slice of tensor ${JSON.stringify(this.name)}: ${problem}`, { tensor: this.name });
  }
}

function elementsOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function bytesOf(elements: number, dtype: DTypeName): number {
  return (elements * DTYPE_BITS[dtype]) / 8;
}

function stridesOf(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  for (let i = shape.length - 1, stride = 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= shape[i]!;
  }
  return strides;
}

/** The innermost dimensions that are row-major among themselves: how many are outside, and the elements inside. */
function innerRun(shape: readonly number[], strides: readonly number[]): { outer: number; elements: number } {
  let outer = shape.length;
  let elements = 1;
  while (outer > 0 && (shape[outer - 1] === 1 || strides[outer - 1] === elements)) elements *= shape[--outer]!;
  return { outer, elements };
}
