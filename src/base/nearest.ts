/** Steps of one search: a millisecond or two, however many the candidates are. */
const MOST_STEPS = 400_000;
/** Steps that a candidate takes at least. */
const EACH = 20;
/** Longer names are not compared. */
const LONGEST = 512;

/**
 * The candidate that takes the fewest edits, if they are few for its length or one name contains the other. Of many, as
 * far as it looked before it had done enough.
 */
export function nearest(name: string, candidates: Iterable<string>): string | undefined {
  if (name.length > LONGEST) return undefined;
  const a = plain(name);
  let best: string | undefined;
  let fewest = Number.POSITIVE_INFINITY;
  let steps = 0;
  for (const candidate of candidates) {
    steps += EACH;
    if (steps > MOST_STEPS) break;
    if (candidate.length > LONGEST) continue;
    const b = plain(candidate);
    const contained = Math.min(a.length, b.length) > 3 && (a.includes(b) || b.includes(a));
    const most = contained ? Number.POSITIVE_INFINITY : Math.max(a.length, b.length) / 3;
    if (Math.abs(a.length - b.length) > most || Math.abs(a.length - b.length) >= fewest) continue;
    const [from, to] = differing(a, b);
    steps += from.length * to.length;
    const edits = editDistance(from, to);
    if (edits <= most && edits < fewest) [best, fewest] = [candidate, edits];
  }
  return best;
}

/** A name as it is compared. */
export function plain(name: string): string {
  return name.replace(/[_-]/g, '').toLowerCase();
}

/** Two names without the beginning and the end that they share. */
function differing(a: string, b: string): [string, string] {
  const shorter = Math.min(a.length, b.length);
  let begin = 0;
  while (begin < shorter && a[begin] === b[begin]) ++begin;
  let end = 0;
  while (end < shorter - begin && a[a.length - 1 - end] === b[b.length - 1 - end]) ++end;
  return [a.slice(begin, a.length - end), b.slice(begin, b.length - end)];
}

/** Counts letters that are inserted, left out, replaced, or swapped with their neighbour. */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; ++i) {
    const next = [i];
    for (let j = 1; j <= b.length; ++j) {
      let edits = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) edits = Math.min(edits, before[j - 2]! + 1);
      next.push(edits);
    }
    before = row;
    row = next;
  }
  return row[b.length]!;
}
