import { entriesOf, fail, isList, isUrl } from '../base/checks.js';
import { type Files, listedFiles } from '../safetensors/files.js';

/** Files of rank 0, or those of each rank by its number. */
export type FilesByRank = Files | Readonly<Record<number, Files>> | ReadonlyMap<number, Files>;

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

const EXPECTED = 'paths, or an object or a Map of paths by rank';

/** The group of a loader: without one, or for null (Python's None), one rank. */
export function groupOf({ pg }: { readonly pg?: ProcessGroup | null }): ProcessGroup {
  return pg ?? new SingleGroup();
}

/**
 * The files of this rank; undefined where it has none by rank. INVALID_ARGUMENT for what is neither files nor files by
 * rank, and for wrong ranks.
 */
export function filesOfRank(files: FilesByRank, { rank, size }: ProcessGroup, name: string): Files | undefined {
  if (typeof files === 'string' || isUrl(files) || isList(files)) return listedFiles(files as Files);
  const byRank = new Map<number, Files>();
  for (const [key, given] of entriesOf<number, Files>(files as Readonly<Record<number, Files>>, name, EXPECTED)) {
    if (!/^(0|[1-9]\d*)$/.test(String(key)) || Number(key) >= size) fail(name, `ranks from 0 to ${size - 1}`, key);
    if (byRank.has(Number(key))) fail(name, `rank ${key} once`, key);
    byRank.set(Number(key), given === undefined ? [] : listedFiles(given, `${name}, rank ${key}`));
  }
  const mine = byRank.get(rank) ?? [];
  return isList(mine) && [...mine].length === 0 ? undefined : mine;
}
