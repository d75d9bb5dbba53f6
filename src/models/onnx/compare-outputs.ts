import type { DTypeName } from '../../base/dtype.js';

/** How far two runs may be apart, since runtimes fuse differently: |a - b| <= absolute + relative * |b|. */
interface Tolerance {
  readonly absolute: number;
  readonly relative: number;
}

const EXACT = { absolute: 0, relative: 0 };
const SINGLE = { absolute: 1e-5, relative: 1e-4 };
const HALF = { absolute: 1e-3, relative: 1e-2 };
const COARSE = { absolute: 1e-2, relative: 5e-2 };

/** By ONNX Runtime's type of an output. Integers of 8 bits are mostly quantized, and rounded to either side. */
const OF_OUTPUTS: Readonly<Record<string, Tolerance>> = {
  float32: SINGLE,
  float64: SINGLE,
  float16: HALF,
  int8: { absolute: 1, relative: 0 },
  uint8: { absolute: 1, relative: 0 },
};

/** How far a model that computes with such weights may be apart, whatever the type of its outputs. */
function ofWeights(dtype: DTypeName): Tolerance {
  if (dtype === 'F16') return HALF;
  return dtype === 'BF16' || dtype === 'F4' || dtype.startsWith('F8_') ? COARSE : SINGLE;
}

/** How far the outputs of two runs are apart. */
export interface Difference {
  /** The largest |a - b|; Infinity where only one is NaN, or where lengths differ. */
  readonly largest: number;
  /** Whether every element is within the tolerance. */
  readonly withinTolerance: boolean;
}

type Outputs = Readonly<Record<string, { readonly type?: string; readonly data: unknown }>>;

/**
 * Compares every output with that of the original run, element by element; texts are equal or not. The tolerance is
 * that of the output's type or, for a floating one, of the coarsest of `weights`. An output without a type is float32.
 */
export function compareOutputs(found: Outputs, expected: Outputs, weights: readonly DTypeName[] = []): Difference {
  let largest = 0;
  let withinTolerance = true;
  const coarsest = weights.map(ofWeights).reduce(coarser, EXACT);
  for (const [name, { type = 'float32', data }] of Object.entries(expected)) {
    const b = elementsOf(type, data);
    const a = found[name] && elementsOf(type, found[name].data);
    if (a?.length !== b.length) return { largest: Number.POSITIVE_INFINITY, withinTolerance: false };
    const own = OF_OUTPUTS[type] ?? EXACT;
    const { absolute, relative } = type.startsWith('float') ? coarser(own, coarsest) : own;
    for (let i = 0; i < b.length; ++i) {
      const difference = distance(a[i]!, b[i]!);
      largest = Math.max(largest, difference);
      // An expected infinity tolerates nothing: a part of it would tolerate everything.
      const finite = typeof b[i] === 'number' && Number.isFinite(b[i]);
      const allowed = finite ? absolute + relative * Math.abs(b[i] as number) : 0;
      if (difference > allowed) withinTolerance = false;
    }
  }
  return { largest, withinTolerance };
}

const coarser = (a: Tolerance, b: Tolerance): Tolerance => (a.relative >= b.relative ? a : b);

/** Where JavaScript has no Float16Array, halves come as their bits. */
function elementsOf(type: string, data: unknown): ArrayLike<number | bigint | string> {
  return type === 'float16' && data instanceof Uint16Array ? Float64Array.from(data, halfOf) : (data as number[]);
}

function halfOf(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  const sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : 2 ** -14 * (mantissa / 1024));
}

function distance(a: number | bigint | string, b: number | bigint | string): number {
  if (Object.is(a, b) || a === b) return 0;
  const difference = Math.abs(Number(a) - Number(b));
  return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
}
