/** A set of integers, kept as sorted intervals [begin, end) that do not touch. */
export class Intervals {
  readonly #begins: number[] = [];
  readonly #ends: number[] = [];

  add(begin: number, end: number): void {
    if (end <= begin) return;
    const first = this.#firstEndingAt(begin);
    let last = first; // one past the intervals that the new one touches
    while (last < this.#begins.length && this.#begins[last]! <= end) ++last;
    if (last > first) {
      begin = Math.min(begin, this.#begins[first]!);
      end = Math.max(end, this.#ends[last - 1]!);
    }
    this.#begins.splice(first, last - first, begin);
    this.#ends.splice(first, last - first, end);
  }

  /** Whether all of [begin, end) is in the set. */
  has(begin: number, end: number): boolean {
    return this.firstGap(begin, end) === undefined;
  }

  /** The first number of [begin, end) that is not in the set. */
  firstGap(begin: number, end: number): number | undefined {
    if (end <= begin) return undefined;
    const i = this.#firstEndingAt(begin + 1);
    if (i === this.#begins.length || this.#begins[i]! > begin) return begin;
    return this.#ends[i]! < end ? this.#ends[i] : undefined;
  }

  /** The first interval that ends at `place` or later. */
  #firstEndingAt(place: number): number {
    let low = 0;
    let high = this.#ends.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ends[middle]! < place) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
