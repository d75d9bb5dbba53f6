/** The processes that share a model. This version loads with one. */
export interface ProcessGroup {
  readonly rank: number;
  readonly size: number;
  readonly localRank?: number;
}

/** A group of one. */
export class SingleGroup implements ProcessGroup {
  readonly rank = 0 as const;
  readonly size = 1 as const;
}
