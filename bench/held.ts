import { readFileSync } from 'node:fs';

/** CPU time of the main thread so far, in ms; 0 where the kernel does not tell. */
export function cpuMs(): number {
  try {
    return Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'latin1').split(' ')[0]) / 1e6;
  } catch {
    return 0;
  }
}

/** How long the event loop is held: what a ticker of 1 ms sees. Of CPU time on request: to ask for it takes 35 us. */
export class Ticker {
  readonly #asksCpu: boolean;
  #last = performance.now();
  #lastCpu = cpuMs();
  #ms = 0;
  #cpuMs = 0;
  readonly #timer = setInterval(() => this.#tick(), 1);

  constructor({ cpu = true } = {}) {
    this.#asksCpu = cpu;
  }

  #tick(): void {
    const now = performance.now();
    const cpu = this.#asksCpu ? cpuMs() : this.#lastCpu;
    this.#ms = Math.max(this.#ms, now - this.#last - 1);
    this.#cpuMs = Math.max(this.#cpuMs, cpu - this.#lastCpu);
    this.#last = now;
    this.#lastCpu = cpu;
  }

  /** The longest that a tick was late until now, and the longest in CPU time of the thread; then both begin anew. */
  take(): { ms: number; cpuMs: number } {
    this.#tick();
    const longest = { ms: this.#ms, cpuMs: this.#cpuMs };
    this.#ms = 0;
    this.#cpuMs = 0;
    return longest;
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}
