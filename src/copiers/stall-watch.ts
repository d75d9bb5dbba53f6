import { after, milliseconds } from '../base/timers.js';

/** Tells when something is in hand and nothing has come of anything for a while. Keeps the event loop alive until then. */
export class StallWatch {
  readonly #limitMs: number;
  readonly #stalled: () => void;
  #inHand = 0;
  #last = 0; // progress
  #stop: (() => void) | undefined;
  #ended = false;

  constructor(limitMs: number, stalled: () => void) {
    this.#limitMs = limitMs;
    this.#stalled = stalled;
  }

  enter(): void {
    ++this.#inHand;
    this.progress();
    if (this.#inHand === 1 && !this.#ended) this.#wait(this.#limitMs);
  }

  leave(): void {
    --this.#inHand;
    this.progress();
    if (this.#inHand === 0) this.#stop?.();
  }

  /** Watches no more. */
  end(): void {
    this.#ended = true;
    this.#stop?.();
  }

  progress(): void {
    this.#last = milliseconds();
  }

  #wait(ms: number): void {
    this.#stop = after(ms, () => {
      const left = this.#last + this.#limitMs - milliseconds();
      if (left > 0) this.#wait(Math.max(1, left));
      else this.#stalled();
    });
  }
}
