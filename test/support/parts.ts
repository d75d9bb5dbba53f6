import { BITS, type Entry } from './model-files.js';

/** The block of a dimension that fastsafetensors gives a rank: of ceil(size / ranks). */
export function blockOf(size: number, rank: number, ranks: number): [start: number, stop: number] {
  const block = Math.ceil(size / ranks);
  return [Math.min(rank * block, size), Math.min((rank + 1) * block, size)];
}

/** The indices [start, stop) of a dimension; undefined where they begin or end within a byte. */
export function partOf(
  { dtype, shape, bytes }: Entry,
  dim: number,
  [start, stop]: readonly [number, number],
): { shape: number[]; bytes: Buffer } | undefined {
  const outer = shape.slice(0, dim).reduce((product, size) => product * size, 1);
  const inner = shape.slice(dim + 1).reduce((product, size) => product * size, 1) * BITS[dtype];
  const row = shape[dim]! * inner;
  const parts: Uint8Array[] = [];
  for (let i = 0; i < outer && stop > start && inner > 0; ++i) {
    const [begin, end] = [i * row + start * inner, i * row + stop * inner];
    if (begin % 8 !== 0 || end % 8 !== 0) return undefined;
    parts.push(bytes.subarray(begin / 8, end / 8));
  }
  const its = shape.map((size, axis) => (axis === dim ? stop - start : size));
  return { shape: its, bytes: Buffer.concat(parts) };
}
