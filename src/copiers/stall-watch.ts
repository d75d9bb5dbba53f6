import { afterRunning, milliseconds } from '../base/timers.js';

/** Calls back when no request in flight makes progress for a while in which this process runs. */
export class StallWatch {
  readonly #limitMs: number;
  readonly #stalled: () => void;
  #inFlight = 0;
  #lastProgressMs = 0;
  #stop: (() => void) | undefined;
  #ended = false;

  constructor(limitMs: number, stalled: () => void) {
    this.#limitMs = limitMs;
    this.#stalled = stalled;
  }

  /** A request is in flight. */
  enter(): void {
    ++this.#inFlight;
    this.progress();
    if (this.#inFlight === 1 && !this.#ended)
      this.#stop = afterRunning(this.#limitMs, this.#stalled, () => this.#lastProgressMs);
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
