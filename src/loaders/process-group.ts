/** The processes that share a model. Only groups of one are supported yet. */
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
