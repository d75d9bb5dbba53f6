/** A tensor that all ranks want whole. */
export interface SharedTensor {
  /** Bytes in memory. */
  readonly bytes: number;
  /** Into how many parts of equal size, rows of dimension 0, it can be cut. */
  readonly rows: number;
}

/** Rows [start, stop) of a tensor that a rank reads; it has others, or none. */
export interface Share {
  readonly tensor: number;
  readonly rank: number;
  readonly start: number;
  readonly stop: number;
}

/**
 * Cuts tensors into parts that ranks read, in the order of tensors and ranks: each rank has a run of about as many
 * bytes, within what a row has. The same on all ranks for the same tensors.
 */
export function sharesOf(tensors: readonly SharedTensor[], ranks: number): Share[] {
  const total = tensors.reduce((sum, { bytes }) => sum + bytes, 0);
  const shares: Share[] = [];
  let begin = 0;
  for (const [tensor, { bytes, rows }] of tensors.entries()) {
    const first = (rank: number): number =>
      rank === ranks
        ? rows
        : Math.min(Math.max(Math.round((((total / ranks) * rank - begin) / bytes) * rows), 0), rows);
    for (let rank = 0; rank < ranks; ++rank) {
      const [start, stop] = [first(rank), first(rank + 1)];
      if (stop > start) shares.push({ tensor, rank, start, stop });
    }
    begin += bytes;
  }
  return shares;
}
