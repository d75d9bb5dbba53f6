import { Turns } from '../base/timers.js';

/** How tensors are shared out among devices: LoaderOptions.split. */
export type Split = 'layers' | 'bytes';

interface Sized {
  readonly name: string;
  readonly bytes: number;
}

/** Tensors that go to one device together. */
interface Unit {
  readonly tensors: number[];
  bytes: number;
}

/**
 * The group, from 0, of each tensor, of `groups` that are contiguous in a sequence and whose largest is as small as can
 * be; none is empty while there are as many units.
 *
 * 'bytes': the sequence is that of the tensors. 'layers': layers are not taken apart, and follow each other by the
 * first number in their tensors' names; see sequenceOf(). A model without such numbers is split as with 'bytes'.
 */
export async function splitTensors(tensors: readonly Sized[], groups: number, split: Split): Promise<Uint16Array> {
  const found = new Uint16Array(tensors.length);
  const single = (): Unit[] => tensors.map(({ bytes }, tensor) => ({ tensors: [tensor], bytes }));
  const units = (split === 'layers' ? await sequenceOf(tensors) : undefined) ?? single();
  const ends = await cut(
    units.map(({ bytes }) => bytes),
    groups,
  );
  let unit = 0;
  for (const [group, end] of ends.entries()) {
    for (; unit < end; ++unit) for (const tensor of units[unit]!.tensors) found[tensor] = group;
  }
  return found;
}

/** The first number between dots, and the text before it: of "model.layers.7.up.weight" 7 and "model.layers". */
const LAYER = /^(?:(.*?)\.)?(\d{1,9})(?=\.|$)/;
/** What comes before the first layer, of tensors that belong to none. */
const FIRST = /emb|wte|wpe|(?:^|\.)(?:pos|patch|cls|stem|conv_?in|pre_|query_tokens)/i;

interface Stack {
  readonly before: Unit[];
  readonly layers: Map<number, Unit>;
  readonly after: Unit[];
}

/**
 * Layers in the order of their numbers, stack by stack ("encoder.layers", "decoder.layers") in the order in which they
 * come in files. What belongs to no layer goes to the stack that has most of its name in common: before its first layer
 * where the name says so (embeddings), else behind the last (norms, heads). Undefined where nothing has a number.
 */
async function sequenceOf(tensors: readonly Sized[]): Promise<Unit[] | undefined> {
  const stacks = new Map<string, Stack>();
  const paths: Path = { parts: new Map() };
  const others: number[] = [];
  const turns = new Turns();
  for (const [tensor, { name, bytes }] of tensors.entries()) {
    if (turns.due()) await turns.take();
    const match = LAYER.exec(name);
    if (!match) {
      others.push(tensor);
      continue;
    }
    const path = match[1] ?? '';
    let stack = stacks.get(path);
    if (!stack) {
      stack = { before: [], layers: new Map(), after: [] };
      stacks.set(path, stack);
      add(paths, path.split('.').slice(0, -1), stack); // of "model.layers" it is "model" that holds it
    }
    const number = Number(match[2]);
    const layer = stack.layers.get(number);
    if (layer) {
      layer.tensors.push(tensor);
      layer.bytes += bytes;
    } else {
      stack.layers.set(number, { tensors: [tensor], bytes });
    }
  }
  if (stacks.size === 0) return undefined;
  const all = [...stacks.values()];
  for (const tensor of others) {
    const { name, bytes } = tensors[tensor]!;
    const isFirst = FIRST.test(name);
    const { first, last } = nearest(paths, name);
    const stack = (isFirst ? first : last)!;
    (isFirst ? stack.before : stack.after).push({ tensors: [tensor], bytes });
    if (turns.due()) await turns.take();
  }
  return all.flatMap(({ before, layers, after }) => {
    const sorted = [...layers].sort(([a], [b]) => a - b).map(([, layer]) => layer);
    return [...before, ...sorted, ...after];
  });
}

/** What holds stacks, and what holds that, by the parts of their names. */
interface Path {
  readonly parts: Map<string, Path>;
  /** Of the stacks somewhere in it, in the order of files. */
  first?: Stack;
  last?: Stack;
}

function add(root: Path, path: readonly string[], stack: Stack): void {
  const holders = [root];
  for (const part of path) {
    const { parts } = holders.at(-1)!;
    const holder = parts.get(part) ?? { parts: new Map() };
    parts.set(part, holder);
    holders.push(holder);
  }
  for (const holder of holders) {
    holder.first ??= stack;
    holder.last = stack;
  }
}

/** Where the stacks are that share most of a name's path. */
function nearest(root: Path, name: string): Path {
  let at = root;
  for (const part of name.split('.')) {
    const next = at.parts.get(part);
    if (!next) break;
    at = next;
  }
  return at;
}

/** Ends of contiguous groups of sizes: the largest sum is as small as can be, the others as even as that lets them. */
async function cut(sizes: readonly number[], groups: number): Promise<number[]> {
  const { length } = sizes;
  const turns = new Turns();
  let most = sizes.reduce((largest, size) => Math.max(largest, size), 0);
  for (let high = sizes.reduce((sum, size) => sum + size, 0); most < high; ) {
    if (turns.due()) await turns.take();
    const middle = most + Math.floor((high - most) / 2);
    if (groupsNeeded(sizes, middle)[0]! <= groups) high = middle;
    else most = middle + 1;
  }
  const needed = groupsNeeded(sizes, most);
  let left = sizes.reduce((sum, size) => sum + size, 0);
  const ends: number[] = [];
  let end = 0;
  for (let others = groups - 1; others > 0; --others) {
    const even = left / (others + 1);
    let used = 0;
    for (; end < length && (used === 0 || length - end > others); ++end) {
      const more = used + sizes[end]!;
      const begun = end > (ends.at(-1) ?? 0);
      const enough = needed[end]! <= others && (more > most || more - even >= even - used);
      if (begun && (enough || length - end <= others)) break;
      used = more;
    }
    left -= used;
    ends.push(end);
  }
  return [...ends, length];
}

/** Of the sizes from each on: how many groups it takes so that none is larger than `most`, which no size is. */
function groupsNeeded(sizes: readonly number[], most: number): Uint32Array {
  const needed = new Uint32Array(sizes.length + 1);
  let used = 0;
  let end = sizes.length;
  for (let begin = sizes.length - 1; begin >= 0; --begin) {
    used += sizes[begin]!;
    while (used > most) used -= sizes[--end]!;
    needed[begin] = needed[end]! + 1;
  }
  return needed;
}
