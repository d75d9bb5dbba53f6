/** How long the event loop is held: what a ticker of 1 ms sees. */
export class Ticker {
  #last = performance.now();
  #held = 0;
  readonly #timer = setInterval(() => this.#tick(), 1);

  #tick(): void {
    const now = performance.now();
    this.#held = Math.max(this.#held, now - this.#last - 1);
    this.#last = now;
  }

  /** The longest that a tick was late, in ms, until now; then it begins anew. */
  take(): number {
    this.#tick();
    const held = this.#held;
    this.#held = 0;
    return held;
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}
