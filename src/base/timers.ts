import { performance as clock } from 'node:perf_hooks';
import * as timers from 'node:timers';

/**
 * The timers that this package runs on, taken when it is imported. Tests of applications replace the global ones (and
 * those of node:timers) by fakes, which tick only when told to: a load would wait forever.
 */
const { setImmediate, setTimeout, clearTimeout } = timers;
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
function nextTurn(): Promise<void> {
  return new Promise((resolve) => void setImmediate(resolve));
}

/** Gives the event loop its turns in a loop over many items: `if (turns.due()) await turns.take();` after each item. */
export class Turns {
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

/**
 * Calls `call` after `ms` milliseconds, and never where that is more than setTimeout can count (24 days) or Infinity.
 * Returns what cancels it.
 */
export function after(ms: number, call: () => void): () => void {
  if (ms > LONGEST_MS) return () => {};
  const timer = setTimeout(call, ms);
  return () => clearTimeout(timer);
}

/** Whether a promise resolves within `ms` milliseconds; rejects as it does until then. */
export async function within(ms: number, promise: Promise<unknown>): Promise<boolean> {
  let stop = (): void => {};
  const late = new Promise<boolean>((resolve) => {
    stop = after(ms, () => resolve(false));
  });
  try {
    return await Promise.race([promise.then(() => true), late]);
  } finally {
    stop();
  }
}
