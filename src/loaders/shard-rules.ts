import { entriesOf, fail, isPlain } from '../base/checks.js';
import { InvalidArgumentError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import type { TensorFrame } from '../safetensors/metadata.js';
import { blockOf, type PartRange } from '../transfer/parts.js';
import type { Plan } from '../transfer/plan.js';
import type { ProcessGroup } from './process-group.js';

/**
 * What a rank has of a tensor: its block of this dimension (-1: all of the tensor), or the indices [start, stop) of
 * `dim`, as Python slices.
 */
export type ShardPart = number | { readonly dim: number; readonly start?: number; readonly stop?: number };

/** A part, or a function that says it of each tensor: null for one that this rank does not want. */
export type ShardRule = ShardPart | ((frame: TensorFrame) => ShardPart | null);

/** Rules by the names of tensors, or by patterns of names in which `*` stands for any text. */
export type ShardRules = Readonly<Record<string, ShardRule>> | Iterable<readonly [name: string, rule: ShardRule]>;

/** A whole number from `least`, below `rank`. INVALID_ARGUMENT. */
export function checkDim(dim: unknown, rank: number, name: string, least: number): asserts dim is number {
  if (Number.isInteger(dim) && (dim as number) >= least && (dim as number) < rank) return;
  fail('dim', `a whole number from ${least}, a dimension of "${name}", which has ${rank}`, dim);
}

/** The block of this rank; null for all of the tensor, which dim -1 is. INVALID_ARGUMENT for other dimensions. */
export function blockOfRank({ name, shape }: Named, dim: number, pg: ProcessGroup): PartRange | null {
  checkDim(dim, shape.length, name, -1);
  return dim === -1 ? null : blockOf(dim, shape[dim]!, pg);
}

type Named = Pick<TensorFrame, 'name' | 'shape'>;

function rangeOf(frame: Named, part: ShardPart, pg: ProcessGroup): PartRange | null {
  if (typeof part === 'number') return blockOfRank(frame, part, pg);
  const { name, shape } = frame;
  if (typeof part !== 'object' || part === null || !isPlain(part))
    fail(`the rule of "${name}"`, 'a dimension, { dim, start, stop }, or a function that returns one', part);
  for (const key of Object.keys(part)) {
    if (!['dim', 'start', 'stop'].includes(key)) fail(`the rule of "${name}"`, '{ dim, start, stop }', key);
  }
  checkDim(part.dim, shape.length, name, 0);
  const size = shape[part.dim]!;
  const bound = (value: number | undefined, otherwise: number, what: string): number => {
    if (value === undefined) return otherwise;
    if (!Number.isSafeInteger(value)) fail(`${what} of the rule of "${name}"`, 'a whole number', value);
    return Math.min(Math.max(value < 0 ? value + size : value, 0), size);
  };
  const start = bound(part.start, 0, 'start');
  return { dim: part.dim, start, stop: Math.max(bound(part.stop, size, 'stop'), start) };
}

/** Finds the items of a plan by the names of their tensors. */
export interface Names {
  find(name: string): number | undefined;
  /** The error for a name that is not found. */
  unknown(name: string): Error;
}

/**
 * Applies rules to the tensors of a plan of whole ones, by item: that of a tensor's own name, else the first pattern
 * that it matches; tensors that match none are left out. `find` is undefined for a name that there is not, which
 * `unknown` tells. INVALID_ARGUMENT for wrong rules, and where a rule does not fit its tensor.
 */
export async function applyRules(
  rules: ShardRules,
  what: string,
  plan: Plan,
  names: Names,
  pg: ProcessGroup,
): Promise<Map<number, PartRange | null>> {
  const expected = 'an object or a Map of dimensions or rules, by names of tensors or patterns';
  const exact = new Map<number, ShardRule>();
  const patterns: { matches: RegExp; rule: ShardRule }[] = [];
  const turns = new Turns(64); // few: there may be many rules, and slow ones
  for (const [given, rule] of entriesOf<string, ShardRule>(rules, what, expected)) {
    if (typeof given !== 'string') fail(what, expected, given);
    if (!['number', 'object', 'function'].includes(typeof rule) || rule === null)
      fail(`the rule of "${given}"`, 'a dimension, { dim, start, stop }, or a function that returns one', rule);
    const item = names.find(given); // a tensor may have a star in its name
    if (item !== undefined) exact.set(item, rule);
    else if (given.includes('*')) patterns.push({ matches: patternOf(given), rule });
    else throw names.unknown(given);
    if (turns.due()) await turns.take();
  }
  const ranges = new Map<number, PartRange | null>();
  const take = (item: number, rule: ShardRule): void => {
    const frame = plan.metadataOf(item).frameAt(plan.tensors[item]!);
    const part = typeof rule === 'function' ? rule(frame) : rule;
    if (part === null) return;
    if (part === undefined || typeof (part as { then?: unknown }).then === 'function') {
      const found = part === undefined ? 'nothing' : 'a promise';
      const message = `the rule of "${frame.name}": expected a dimension, { dim, start, stop } or null, found ${found}`;
      throw new InvalidArgumentError(message, { tensor: frame.name });
    }
    ranges.set(item, rangeOf(frame, part, pg));
  };
  if (patterns.length === 0) {
    for (const item of new Uint32Array(exact.keys()).sort()) {
      take(item, exact.get(item)!);
      if (turns.due()) await turns.take();
    }
    return ranges;
  }
  for (let item = 0; item < plan.count; ++item) {
    const name = plan.metadataOf(item).nameAt(plan.tensors[item]!);
    const rule = exact.get(item) ?? patterns.find(({ matches }) => matches.test(name))?.rule;
    if (rule !== undefined) take(item, rule);
    if (turns.due()) await turns.take();
  }
  return ranges;
}

/** Matches names; `*` stands for any text. */
export function patternOf(text: string): RegExp {
  const parts = text.split('*').map((part) => part.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'));
  return new RegExp(`^${parts.join('[\\s\\S]*')}$`);
}
