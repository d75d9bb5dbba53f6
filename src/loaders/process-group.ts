import { entriesOf, fail, isList, isUrl, takesAtMost } from '../base/checks.js';
import { InvalidArgumentError } from '../base/errors.js';
import { type Files, listedFiles } from '../safetensors/files.js';
import type { NcclBroadcast } from './nccl.js';

/** Files of rank 0, or those of each rank by its number. */
export type FilesByRank = Files | Readonly<Record<number, Files>> | ReadonlyMap<number, Files>;

/** The processes that share a model: docs/ranks.md. */
export interface ProcessGroup {
  /** Of this process, from 0. */
  readonly rank: number;
  /** Number of processes. */
  readonly size: number;
  /** Of this process among those of its machine. No loader takes it, or `rank`, for the number of a GPU. */
  readonly localRank?: number;
  /**
   * What nccl() gives: tensors that every rank has whole are read once by all together, in shardedPlan() and asDict(),
   * which every rank then calls in the same order. Default: each rank reads by itself.
   */
  readonly broadcast?: NcclBroadcast;
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

/** How a launcher tells a process which one it is. Of several variables for one thing, the first that is set counts. */
interface Launcher {
  readonly name: string;
  readonly rank: string;
  readonly size: readonly string[];
  readonly localRank: string;
}

const LAUNCHERS: readonly Launcher[] = [
  { name: 'torchrun', rank: 'RANK', size: ['WORLD_SIZE'], localRank: 'LOCAL_RANK' },
  {
    name: 'mpirun',
    rank: 'OMPI_COMM_WORLD_RANK',
    size: ['OMPI_COMM_WORLD_SIZE'],
    localRank: 'OMPI_COMM_WORLD_LOCAL_RANK',
  },
  // SLURM_NTASKS is that of the job, which may have other steps than this one.
  {
    name: 'srun',
    rank: 'SLURM_PROCID',
    size: ['SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS'],
    localRank: 'SLURM_LOCALID',
  },
];

/**
 * The group that the launcher of this process has put into its environment: RANK, WORLD_SIZE and LOCAL_RANK (torchrun),
 * else OMPI_COMM_WORLD_RANK, …_SIZE and …_LOCAL_RANK (Open MPI), else SLURM_PROCID, SLURM_STEP_NUM_TASKS or
 * SLURM_NTASKS, and SLURM_LOCALID (Slurm). The local rank may be missing. Where none of them is set, a group of one.
 * INVALID_ARGUMENT where a launcher's rank or size is missing, is no whole number, or they do not fit together.
 */
export function processGroupFromEnv(
  environment: Readonly<Record<string, string | undefined>> = process.env,
): ProcessGroup {
  takesAtMost(1, arguments, 'processGroupFromEnv');
  if (typeof environment !== 'object' || environment === null)
    fail('processGroupFromEnv', 'an object of variables, such as process.env', environment);
  const isSet = (variable: string): boolean => (environment[variable] ?? '').trim() !== '';
  for (const { name, rank, size: sizes, localRank } of LAUNCHERS) {
    const size = sizes.find(isSet) ?? sizes.at(-1)!;
    if (![rank, size, localRank].some(isSet)) continue;
    for (const [missing, found] of [
      [rank, size],
      [size, rank],
    ] as const) {
      if (isSet(missing)) continue;
      const there = isSet(found) ? found : localRank;
      throw new InvalidArgumentError(
        `${missing}: expected a whole number beside ${there}=${environment[there]}, found nothing; ` +
          `start every process with ${name}, unset both, or give pg: { rank, size }`,
      );
    }
    const ranks = numberOf(size, environment, 1);
    const own = numberOf(rank, environment, 0, ranks - 1, `${size}=${ranks}`);
    if (!isSet(localRank)) return { rank: own, size: ranks };
    const local = numberOf(localRank, environment, 0, ranks - 1, `${size}=${ranks}`);
    return { rank: own, size: ranks, localRank: local };
  }
  return new SingleGroup();
}

function numberOf(
  variable: string,
  environment: Readonly<Record<string, string | undefined>>,
  least: number,
  most = Number.MAX_SAFE_INTEGER,
  because?: string,
): number {
  const text = environment[variable]!.trim();
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  const range = because === undefined ? `from ${least}` : `from ${least} to ${most} (${because})`;
  return fail(variable, `a whole number ${range}`, text);
}

/**
 * The files of a model, for each rank that has some: every rank of a group reads what it wants from all of them. Those
 * that are not given by rank are rank 0's. INVALID_ARGUMENT for what is neither files nor files by rank, and for wrong
 * ranks.
 */
export function filesOfRanks(files: FilesByRank, { size }: ProcessGroup, name: string): Files[] {
  if (typeof files === 'string' || isUrl(files) || isList(files)) return [listedFiles(files as Files)];
  const byRank = new Map<number, Files>();
  for (const [key, given] of entriesOf<number, Files>(files as Readonly<Record<number, Files>>, name, EXPECTED)) {
    if (!/^(0|[1-9]\d*)$/.test(String(key)) || Number(key) >= size) fail(name, `ranks from 0 to ${size - 1}`, key);
    if (byRank.has(Number(key))) fail(name, `rank ${key} once`, key);
    byRank.set(Number(key), given === undefined ? [] : listedFiles(given, `${name}, rank ${key}`));
  }
  const ranks = [...byRank.keys()].sort((a, b) => a - b);
  return ranks.map((rank) => byRank.get(rank)!).filter((own) => !isList(own) || [...own].length > 0);
}
