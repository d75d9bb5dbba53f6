/** The processes that share a model. Only groups of one are supported yet. */
export interface ProcessGroup {
  /** Of this process, from 0. */
  readonly rank: number;
  /** Number of processes. */
  readonly size: number;
  /** Of this process among those of its machine. */
  readonly localRank?: number;
}

/** A group of one. */
export class SingleGroup implements ProcessGroup {
  readonly rank = 0 as const;
  readonly size = 1 as const;
}
