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

/** The files of this rank. INVALID_ARGUMENT for what is neither files nor files by rank, and for wrong ranks. */
export function filesOfRank(files: FilesByRank, { rank, size }: ProcessGroup, name: string): Files {
  if (typeof files === 'string' || isUrl(files) || isList(files)) return listedFiles(files as Files);
  const byRank = new Map<number, Files>();
  for (const [key, given] of entriesOf<number, Files>(files as Readonly<Record<number, Files>>, name, EXPECTED)) {
    if (!/^(0|[1-9]\d*)$/.test(String(key)) || Number(key) >= size) fail(name, `ranks from 0 to ${size - 1}`, key);
    const listed = listedFiles(given, `${name}, rank ${key}`);
    if (byRank.has(Number(key))) fail(name, `rank ${key} once`, key);
    byRank.set(Number(key), listed);
  }
  return byRank.get(rank) ?? [];
}
