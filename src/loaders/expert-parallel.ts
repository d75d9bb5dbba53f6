import { environmentSwitch, fail, integer, takesAtMost } from '../base/checks.js';
import { InvalidArgumentError } from '../base/errors.js';

/** How the routed experts of a model are shared among ranks. */
export interface ExpertParallel {
  /** Routed experts of one layer, over all ranks. */
  readonly numExperts: number;
  /** Ranks that share them. */
  readonly size: number;
  /** This one, from 0. */
  readonly rank: number;
  /** Finds an expert's number, its first group, in the name of a tensor. Default: `/\.experts\.(\d+)\./`. */
  readonly pattern?: RegExp;
}

const PATTERN = /\.experts\.(\d+)\./;

/**
 * The experts [begin, end) of a rank: a block of consecutive ones, of which the first ranks have one more where they do
 * not share evenly. INVALID_ARGUMENT.
 */
export function ownedExpertRange(numExperts: number, size: number, rank: number): [begin: number, end: number] {
  takesAtMost(3, arguments, 'ownedExpertRange');
  integer(0)(numExperts, 'numExperts');
  integer(1)(size, 'size');
  integer(0, size - 1)(rank, 'rank');
  const each = Math.floor(numExperts / size);
  const more = numExperts % size;
  const begin = rank * each + Math.min(rank, more);
  return [begin, begin + each + (rank < more ? 1 : 0)];
}

/**
 * For the option `filter`: tensors of this rank's experts, and all that are of no expert. The bytes of other experts
 * are not read. INVALID_ARGUMENT, also from the filter for an expert that `numExperts` leaves to no rank.
 */
export function expertParallelFilter(experts: ExpertParallel): (name: string) => boolean {
  takesAtMost(1, arguments, 'expertParallelFilter');
  if (typeof experts !== 'object' || experts === null) {
    fail('expertParallelFilter', 'an object { numExperts, size, rank }', experts);
  }
  const { numExperts, size, rank, pattern = PATTERN } = experts;
  const [begin, end] = ownedExpertRange(numExperts, size, rank);
  if (!(Object.prototype.toString.call(pattern) === '[object RegExp]')) fail('pattern', 'a RegExp', pattern);
  // Without g and y, which would go on where the name before was left.
  const finds = new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, ''));
  return (name) => {
    const found = finds.exec(name);
    if (!found) return true;
    const expert = /^\d+$/.test(found[1] ?? '') ? Number(found[1]) : Number.NaN;
    if (!Number.isSafeInteger(expert)) {
      const message = `pattern: its first group is no number in "${name}"; it has to be that of an expert`;
      throw new InvalidArgumentError(message, { tensor: name });
    }
    if (expert >= numExperts) {
      const message = `numExperts: expected more than ${expert}, the expert of "${name}", found ${numExperts}; no rank`;
      throw new InvalidArgumentError(`${message} would load it`, { tensor: name });
    }
    return expert >= begin && expert < end;
  };
}

/**
 * expertParallelFilter() as the environment says, by fastsafetensors' variables: FASTSAFETENSORS_EP_SLICE turns it on,
 * FASTSAFETENSORS_EP_NUM_EXPERTS has the number of experts, FASTSAFETENSORS_EP_SIZE and FASTSAFETENSORS_EP_RANK (else
 * WORLD_SIZE and RANK) say which rank this is. Undefined, for every tensor, where it is off, experts are not given, or
 * there is one rank. INVALID_ARGUMENT for values that are no numbers.
 */
export function expertParallelFilterFromEnv(): ((name: string) => boolean) | undefined {
  takesAtMost(0, arguments, 'expertParallelFilterFromEnv');
  if (environmentSwitch('FASTSAFETENSORS_EP_SLICE') !== true) return undefined;
  const numExperts = number('FASTSAFETENSORS_EP_NUM_EXPERTS', 0);
  if (numExperts <= 0) return undefined;
  let size = number('FASTSAFETENSORS_EP_SIZE', 0);
  if (size <= 0) size = number('WORLD_SIZE', 1);
  let rank = number('FASTSAFETENSORS_EP_RANK', -1);
  if (rank < 0) rank = number('RANK', 0);
  return size <= 1 ? undefined : expertParallelFilter({ numExperts, size, rank });
}

function number(variable: string, otherwise: number): number {
  const text = process.env[variable]?.trim();
  if (text === undefined || text === '') return otherwise;
  if (!/^[+-]?\d+$/.test(text)) fail(variable, 'a whole number', text);
  return Number(text);
}
