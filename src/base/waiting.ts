/** Waiting for what may hang: what ends it, and what is said then. */
import { FastSafetensorsError } from './errors.js';
import { keepExample } from './examples.js';
import { after, afterRunning, held, milliseconds } from './timers.js';

/** Calls waiting for one signal, and the listener that makes them. */
interface Waiting {
  readonly calls: Set<() => void>;
  readonly listener: () => void;
}

const waitingFor = new WeakMap<AbortSignal, Waiting>();

/**
 * Calls `call` when the signal is aborted; returns what cancels that. `call` must be a function of its own each time. A
 * signal has one listener however many calls wait: many loads share a user's signal, and Node.js warns of a leak from
 * eleven listeners on.
 */
export function onAbort(signal: AbortSignal, call: () => void): () => void {
  const waiting = waitingFor.get(signal) ?? listen(signal);
  waiting.calls.add(call);
  return () => {
    waiting.calls.delete(call);
    if (waiting.calls.size === 0) forget(signal, waiting);
  };
}

/**
 * The outcome of a promise, or at once the reason of the first signal that is aborted. `abandoned` is called then:
 * nobody will take the outcome, and what still comes of the promise is the caller's to end.
 */
export function unlessAborted<T>(
  promise: Promise<T>,
  signals: readonly AbortSignal[],
  abandoned?: () => void,
): Promise<T> {
  const waits = new Waits(signals);
  return waits.until(promise, abandoned, () => waits.end());
}

const isAborted = (signal: AbortSignal): boolean => signal.aborted;

/** unlessAborted() for who waits again and again, one wait at a time: has its listeners from the first until end(). */
export class Waits {
  static {
    keepExample(new Waits([]));
  }

  readonly #signals: readonly AbortSignal[];
  readonly #stops: readonly (() => void)[];
  // Not asked of the signals for each wait: V8 would compile that anew for those of each load.
  #aborted: boolean;
  #abort = (): void => {}; // of the last wait

  constructor(signals: readonly AbortSignal[]) {
    this.#signals = signals;
    this.#aborted = signals.some(isAborted);
    this.#stops = signals.map((signal) =>
      onAbort(signal, () => {
        this.#aborted = true;
        this.#abort();
      }),
    );
  }

  /** `ended` is called in any case. */
  until<T>(promise: Promise<T>, abandoned?: () => void, ended?: () => void): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#abort = () => {
        ended?.();
        reject(this.#signals.find(isAborted)!.reason);
        abandoned?.();
      };
      const settled = promise.then(resolve, reject);
      if (ended) void settled.then(ended);
      if (this.#aborted) this.#abort();
    });
  }

  end(): void {
    for (const stop of this.#stops) stop();
  }
}

function listen(signal: AbortSignal): Waiting {
  const waiting: Waiting = {
    calls: new Set(),
    listener: () => {
      forget(signal, waiting);
      for (const call of [...waiting.calls]) call();
    },
  };
  waitingFor.set(signal, waiting);
  signal.addEventListener('abort', waiting.listener);
  return waiting;
}

function forget(signal: AbortSignal, waiting: Waiting): void {
  signal.removeEventListener('abort', waiting.listener);
  if (waitingFor.get(signal) === waiting) waitingFor.delete(signal);
}

/** Calls back when no request in flight makes progress for a while in which this process runs. */
export class StallWatch {
  readonly #limitMs: number;
  readonly #stalled: () => void;
  readonly #look: () => void;
  #inFlight = 0;
  #lastProgressMs = 0;
  #stop: (() => void) | undefined;
  #ended = false;

  /** `look` may call progress(), and is called before it is judged whether there was any. */
  constructor(limitMs: number, stalled: () => void, look = (): void => {}) {
    this.#limitMs = limitMs;
    this.#stalled = stalled;
    this.#look = look;
  }

  /** A request is in flight. */
  enter(): void {
    ++this.#inFlight;
    this.progress();
    if (this.#inFlight !== 1 || this.#ended) return;
    this.#stop = afterRunning(this.#limitMs, this.#stalled, () => {
      this.#look();
      return this.#lastProgressMs;
    });
  }

  /** A request has ended. */
  leave(): void {
    --this.#inFlight;
    this.progress();
    if (this.#inFlight === 0) this.#stop?.();
  }

  /** Stops watching. */
  end(): void {
    this.#ended = true;
    this.#stop?.();
  }

  progress(): void {
    this.#lastProgressMs = milliseconds();
  }
}

/** Calls of one watch that are begun at a time. The threads for them are 64: one hung load leaves some to others. */
const CALLS_AT_A_TIME = 8;

/** Milliseconds without any progress after which something is STALLED, where no option says otherwise. */
export const DEFAULT_STALL_TIMEOUT_MS = 90_000;

/** How long a load may take; see LoaderOptions. */
export interface Limits {
  readonly timeoutMs?: number;
  readonly stallTimeoutMs?: number;
}

interface Call {
  readonly what: string;
  readonly path: () => string;
  readonly moved: (() => number) | undefined;
  readonly sinceMs: number;
}

/** Carries out calls on files for somebody who waits for them with a limit. */
export interface FileCalls {
  /**
   * `what`, with the path (of several files the one that is read now), to follow "waiting for": 'a look at'.
   * `moved`: a number that grows while the call goes on.
   */
  call<T>(what: string, path: string | (() => string), begin: () => Promise<T>, moved?: () => number): Promise<T>;
}

/** For a caller that has limits of its own, and keeps the event loop alive itself. */
export const UNWATCHED: FileCalls = { call: (_what, _path, begin) => begin() };

/**
 * Limits one load from its first look at a file on. While files are looked at it is STALLED when none of its calls has
 * ended, or moved, for stallTimeoutMs in which the process ran; TIMEOUT after timeoutMs. Both name what was waited for
 * longest. What hangs then is left behind: it keeps neither the caller nor the event loop, and no call follows it.
 */
export class CallWatch implements FileCalls {
  readonly #timeoutMs: number;
  readonly #stallTimeoutMs: number;
  readonly #signals: readonly AbortSignal[];
  readonly #beganMs: number;
  readonly #calls = new Set<Call>(); // the oldest first
  #moved = 0; // of all of them, at the last look
  readonly #stalls: StallWatch;
  readonly #over = new AbortController();
  #free = CALLS_AT_A_TIME;
  readonly #queue: (() => void)[] = [];

  /** `spentMs`: what of timeoutMs earlier parts of the load have taken. */
  constructor(limits: Limits = {}, signals: readonly AbortSignal[] = [], spentMs = 0) {
    this.#timeoutMs = limits.timeoutMs ?? Number.POSITIVE_INFINITY;
    this.#stallTimeoutMs = limits.stallTimeoutMs ?? DEFAULT_STALL_TIMEOUT_MS;
    this.#signals = [...signals, this.#over.signal];
    this.#beganMs = milliseconds() - spentMs;
    this.#stalls = new StallWatch(
      this.#stallTimeoutMs,
      () => this.#fail('STALLED'),
      () => this.#look(),
    );
  }

  get spentMs(): number {
    return milliseconds() - this.#beganMs;
  }

  /** Milliseconds until the deadline; 0 after it. */
  get leftMs(): number {
    return Math.max(this.#timeoutMs - this.spentMs, 0);
  }

  /**
   * The outcome of work that calls through this watch, or at once TIMEOUT, STALLED, or the reason of a signal. The
   * event loop stays alive until then. `abandoned` is called where the work was given up.
   */
  async during<T>(work: Promise<T>, abandoned?: () => void): Promise<T> {
    const stop = after(this.leftMs, () => this.#fail('TIMEOUT'));
    try {
      return await held(unlessAborted(work, this.#signals, abandoned));
    } finally {
      stop();
    }
  }

  async call<T>(
    what: string,
    given: string | (() => string),
    begin: () => Promise<T>,
    moved?: () => number,
  ): Promise<T> {
    const path = typeof given === 'string' ? () => given : given;
    if (this.#free > 0) --this.#free;
    else await new Promise<void>((resolve) => this.#queue.push(resolve));
    const call = { what, path, moved, sinceMs: milliseconds() };
    this.#calls.add(call);
    this.#stalls.enter();
    try {
      for (const signal of this.#signals) signal.throwIfAborted();
      return await begin();
    } finally {
      this.#calls.delete(call);
      this.#stalls.leave();
      const next = this.#queue.shift();
      if (next) next();
      else ++this.#free;
    }
  }

  #look(): void {
    let moved = 0;
    for (const call of this.#calls) moved += call.moved?.() ?? 0;
    if (moved !== this.#moved) this.#stalls.progress();
    this.#moved = moved;
  }

  #fail(code: 'STALLED' | 'TIMEOUT'): void {
    this.#stalls.end();
    const [oldest] = this.#calls;
    const waited = oldest && `waiting for ${oldest.what} ${oldest.path()} for ${since(oldest.sinceMs)} ms`;
    const others = this.#calls.size > 1 ? `, and for ${this.#calls.size - 1} more calls` : '';
    const message =
      code === 'STALLED'
        ? `${waited}${others}, none of which has come back for ${this.#stallTimeoutMs} ms (stallTimeoutMs); ` +
          'is its store still there?'
        : `the load was not complete after ${this.#timeoutMs} ms: ` +
          `${waited ? waited + others : 'it was being prepared'}; raise timeoutMs`;
    this.#over.abort(new FastSafetensorsError(code, message, { path: oldest?.path() }));
  }
}

function since(ms: number): number {
  return Math.round(milliseconds() - ms);
}
