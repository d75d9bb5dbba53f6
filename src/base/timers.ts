import { performance as clock } from 'node:perf_hooks';
import * as timers from 'node:timers';

/**
 * The timers that this package runs on, taken when it is imported: tests of applications put fake ones in place of the global ones (and of those of node:timers),
 * which tick when they are told to. A load would wait for ever.
 */
const { setImmediate, setTimeout, clearTimeout } = timers;
export const setInterval: typeof timers.setInterval = timers.setInterval;
export const clearInterval: typeof timers.clearInterval = timers.clearInterval;

const now = clock.now.bind(clock);

/** The longest that setTimeout takes: from there on it means 1 ms. */
const LONGEST_MS = 2 ** 31 - 1;

/** Milliseconds of a clock that only goes forward. */
export function milliseconds(): number {
  return now();
}

/** Lets the event loop have a turn. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => void setImmediate(resolve));
}

/** Calls after that many milliseconds, never after more than setTimeout can count (24 days) or Infinity; returns what takes it back. */
export function after(ms: number, call: () => void): () => void {
  if (ms > LONGEST_MS) return () => {};
  const timer = setTimeout(call, ms);
  return () => clearTimeout(timer);
}
