import type { Load } from './load.js';

/** Tells of each item of a load when it is ready. For a load with collectReady. */
export class Arrival {
  readonly #load: Load;
  readonly #ready: Uint8Array; // by item
  readonly #waiting = new Map<number, { resolve: () => void; reject: (error: unknown) => void }[]>(); // by item
  #failed: { readonly error: unknown } | undefined;

  constructor(load: Load) {
    this.#load = load;
    this.#ready = new Uint8Array(load.plan.count);
  }

  /** Resolves when every item is ready; rejects with the load's error. Does not keep the event loop alive. */
  async run(): Promise<void> {
    const load = this.#load;
    for (;;) {
      const { drained } = load; // asked before items are taken: after it none becomes ready
      for (const item of Array.from(load.takeReady())) this.#arrived(item);
      if (load.error || drained) return load.complete();
      await load.wait();
    }
  }

  /** The load has failed: those who wait for an item are told so, and those who ask later. */
  fail(error: unknown): void {
    this.#failed = { error };
    for (const waiting of this.#waiting.values()) for (const { reject } of waiting) reject(error);
    this.#waiting.clear();
  }

  /** Resolves when an item is ready, undefined where it is; rejects with what fail() was given. */
  ready(item: number): Promise<void> | undefined {
    if (this.#failed) return Promise.reject(this.#failed.error);
    if (this.#ready[item] === 1) return undefined;
    return new Promise((resolve, reject) => {
      const waiting = this.#waiting.get(item);
      if (waiting) waiting.push({ resolve, reject });
      else this.#waiting.set(item, [{ resolve, reject }]);
    });
  }

  #arrived(item: number): void {
    this.#ready[item] = 1;
    for (const { resolve } of this.#waiting.get(item) ?? []) resolve();
    this.#waiting.delete(item);
  }
}
