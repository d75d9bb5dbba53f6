/** How far two runs may be apart, since runtimes fuse differently: |a - b| <= ABSOLUTE + RELATIVE * |b|. */
const ABSOLUTE = 1e-5;
const RELATIVE = 1e-4;

/** How far the outputs of two runs are apart. */
export interface Difference {
  /** The largest |a - b|; Infinity where only one is NaN, or where lengths differ. */
  readonly largest: number;
  /** Whether every element is within the tolerance. */
  readonly withinTolerance: boolean;
}

type Outputs = Readonly<Record<string, { readonly data: unknown }>>;

/** Compares every output with that of the original run, element by element; texts are equal or not. */
export function compareOutputs(found: Outputs, expected: Outputs): Difference {
  let largest = 0;
  let withinTolerance = true;
  for (const [name, { data }] of Object.entries(expected)) {
    const b = data as ArrayLike<number | bigint | string>;
    const a = found[name]?.data as ArrayLike<number | bigint | string> | undefined;
    if (a?.length !== b.length) return { largest: Number.POSITIVE_INFINITY, withinTolerance: false };
    for (let i = 0; i < b.length; ++i) {
      const difference = distance(a[i]!, b[i]!);
      largest = Math.max(largest, difference);
      // An expected infinity tolerates nothing: 1e-4 of it would tolerate everything.
      const allowed =
        typeof b[i] === 'number' && Number.isFinite(b[i]) ? ABSOLUTE + RELATIVE * Math.abs(b[i] as number) : 0;
      if (difference > allowed) withinTolerance = false;
    }
  }
  return { largest, withinTolerance };
}

function distance(a: number | bigint | string, b: number | bigint | string): number {
  if (Object.is(a, b) || a === b) return 0;
  const difference = Math.abs(Number(a) - Number(b));
  return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
}
