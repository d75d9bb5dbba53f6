import { hint } from '../base/checks.js';
import { DTYPE_BITS, type DTypeName } from '../base/dtype.js';
import { InvalidArgumentError } from '../base/errors.js';

/** One dimension of a slice: an index drops the dimension, a range keeps it. Negative values count from the end, as in Python. */
export type SliceRange = number | { readonly start?: number; readonly stop?: number; readonly step?: number };

/** Bytes that lie together, from the start of the file's data. */
export interface ByteRun {
  readonly offset: number;
  readonly length: number;
}

/** Byte runs at regular distances; dimensions outermost first, strides in bytes. */
export interface RunGrid {
  readonly offset: number;
  readonly length: number;
  readonly dims: readonly { readonly count: number; readonly stride: number }[];
}

/** Where the elements are: element (i, j, …) lies `offset + i * strides[0] + j * strides[1] + …` elements behind `base`. */
interface Layout {
  /** Bytes from the start of the file's data to the whole tensor's first element. */
  readonly base: number;
  readonly offset: number;
  readonly strides: readonly number[];
}

/**
 * What a header says of one tensor, or of a slice of it. Immutable.
 *
 * `shape` and `byteLength` are those of the slice. `dataOffsets` (bytes from the start of the file's data) is the smallest span that covers
 * it, [begin, begin] when it has no elements; for a slice that is not contiguous the span is longer than `byteLength`, and
 * `runs()` tells which bytes of it belong to the slice, in the slice's order.
 */
export class TensorFrame {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly dataOffsets: readonly [number, number];
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

  /** Whether the slice's bytes lie together in its order, so that one read of `dataOffsets` gets them. */
  get isContiguous(): boolean {
    return this.byteLength === 0 || innerRun(this.shape, this.#layout.strides).outer === 0;
  }

  /**
   * Python's slicing, one argument per dimension; dimensions without one are kept whole. A range that leaves the tensor is clamped; an index
   * that does is INVALID_ARGUMENT, as are a step of 0, too many arguments and values that are no integers. A slice of a sub-byte
   * dtype must begin and end its runs on whole bytes.
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

  /**
   * The byte runs that make up this frame, in the order of its elements, neighbours merged; none for an empty one. Their lengths add up to
   * `byteLength`. A run is as long as the inner dimensions allow, at worst one element: read `dataOffsets` whole where runs are short.
   * @internal
   */
  *runs(): Generator<ByteRun, void, void> {
    if (this.byteLength === 0) return;
    const bits = DTYPE_BITS[this.dtype];
    const { base, offset, strides } = this.#layout;
    const { outer, elements } = innerRun(this.shape, strides);
    const length = (elements * bits) / 8;
    const index = new Array<number>(outer).fill(0);
    let element = offset;
    let pending: { offset: number; length: number } | undefined;
    for (;;) {
      const at = base + (element * bits) / 8;
      if (pending && pending.offset + pending.length === at) {
        pending.length += length;
      } else {
        if (pending) yield pending;
        pending = { offset: at, length };
      }
      let dimension = outer - 1;
      for (; dimension >= 0; --dimension) {
        element += strides[dimension]!;
        if (++index[dimension]! < this.shape[dimension]!) break;
        element -= strides[dimension]! * this.shape[dimension]!;
        index[dimension] = 0;
      }
      if (dimension < 0) break;
    }
    yield pending;
  }

  /**
   * The same runs as numbers, however many they are, neighbours merged within the inner dimensions only: each `length` bytes, the one at index 0 of every
   * dimension at `offset` from the start of the file's data. Dimensions of one index are left out. For frames that are not empty. @internal
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
      throw this.#invalid(
        `expected a number or { start, stop, step } for dimension ${dimension}, found ${String(range)}`,
      );
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
    // As PySlice_AdjustIndices: backwards, -1 stands for "before the first".
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
    return new InvalidArgumentError(`slice of tensor ${JSON.stringify(this.name)}: ${problem}`, {
      tensor: this.name,
    });
  }
}

function elementsOf(shape: readonly number[]): number {
  let elements = 1;
  for (const size of shape) {
    if (size === 0) return 0;
    elements *= size;
  }
  return elements;
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

/** The innermost dimensions that are row-major among themselves: how many are outside of them, and how many elements they hold together. */
function innerRun(shape: readonly number[], strides: readonly number[]): { outer: number; elements: number } {
  let outer = shape.length;
  let elements = 1;
  while (outer > 0 && (shape[outer - 1] === 1 || strides[outer - 1] === elements)) elements *= shape[--outer]!;
  return { outer, elements };
}
