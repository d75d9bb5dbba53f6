import { performance as clock } from 'node:perf_hooks';
import * as timers from 'node:timers';
import { keepExample } from './examples.js';

/**
 * The timers that this package runs on, taken when it is imported. Tests of applications replace the global ones (and
 * those of node:timers) by fakes, which tick only when told to: a load would wait forever.
 */
const { setTimeout, clearTimeout } = timers;
export const setImmediate: typeof timers.setImmediate = timers.setImmediate;
export const setInterval: typeof timers.setInterval = timers.setInterval;
export const clearInterval: typeof timers.clearInterval = timers.clearInterval;

const now = clock.now.bind(clock);

/** The longest delay of setTimeout: a longer one means 1 ms to it. */
const LONGEST_MS = 2 ** 31 - 1;

/** How long a loop may hold the event loop. */
const TURN_MS = 2;

// Loops that run at the same time share these, and so TURN_MS.
let lastTurnMs = now();
let turn: Promise<void> | undefined; // that loops wait for

/** Milliseconds of a monotonic clock. */
export function milliseconds(): number {
  return now();
}

/** Lets the event loop have a turn. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => void setImmediate(resolve));
}

/** Gives the event loop its turns in a loop over many items: `if (turns.due()) await turns.take();` after each item. */
export class Turns {
  static {
    keepExample(new Turns());
  }

  readonly #every: number;
  #items = 0;

  /** The clock is read once in `every` items, which should take far less than a millisecond together. */
  constructor(every = 1024) {
    this.#every = every;
  }

  /** Counts an item. True when the event loop has waited long enough. */
  due(): boolean {
    return ++this.#items % this.#every === 0 && now() - lastTurnMs >= TURN_MS;
  }

  take(): Promise<void> {
    turn ??= nextTurn().then(() => {
      turn = undefined;
      lastTurnMs = now();
    });
    return turn;
  }
}

// Whoever waits keeps the event loop alive, and nothing else does: neither limits, nor native work, which may hang in
// the kernel (a store whose daemon was stopped) when nobody waits for it any more.
let waiting = 0;
let alive: NodeJS.Timeout | undefined;

/** The outcome of a promise; the event loop stays alive until it is there. */
export async function held<T>(promise: Promise<T>): Promise<T> {
  alive ??= setInterval(() => {}, LONGEST_MS);
  if (++waiting === 1) alive.ref();
  try {
    return await promise;
  } finally {
    if (--waiting === 0) alive.unref();
  }
}

/**
 * Calls `call` after `ms` milliseconds, and never where that is more than setTimeout can count (24 days) or Infinity.
 * Returns what cancels it. Does not keep the event loop alive.
 */
export function after(ms: number, call: () => void): () => void {
  if (ms > LONGEST_MS) return () => {};
  const timer = setTimeout(call, Math.max(ms, 0)).unref();
  return () => clearTimeout(timer);
}

/** In a stall limit: how often what has completed is taken up before anything is judged. */
const LOOKS = 8;
const SHORTEST_LOOK_MS = 5;

/**
 * As after(), but counts the time in which this process runs: what it was stopped for (SIGSTOP, a debugger, `docker
 * pause`), or the event loop was held up, counts little. `since`: when the time began anew, in milliseconds(); it is
 * asked again and again.
 */
export function afterRunning(ms: number, call: () => void, since = (): number => Number.NEGATIVE_INFINITY): () => void {
  if (ms > LONGEST_MS) return () => {};
  const look = Math.max(ms / LOOKS, SHORTEST_LOOK_MS);
  let ran = 0;
  let seen = Number.NEGATIVE_INFINITY;
  let stop = (): void => {};
  const wait = (): void => {
    const began = now();
    stop = after(look, () => {
      const latest = since();
      if (latest > seen) {
        seen = latest;
        ran = 0;
      }
      ran += Math.min(now() - Math.max(began, latest), look);
      // One look more than the limit: what a stop has held up, while one look counted, gets another to complete.
      if (ran >= ms + look) call();
      else wait();
    });
  };
  wait();
  return () => stop();
}

/**
 * Whether a promise resolves within `ms` milliseconds in which this process runs (see afterRunning); rejects as it does
 * until then.
 */
export async function within(ms: number, promise: Promise<unknown>): Promise<boolean> {
  let stop = (): void => {};
  const late = new Promise<boolean>((resolve) => {
    stop = afterRunning(ms, () => resolve(false));
  });
  try {
    return await Promise.race([promise.then(() => true), late]);
  } finally {
    stop();
  }
}
