import { milliseconds, Turns } from '../base/timers.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { adopt, isPromise } from '../device/framework.js';
import { readShards } from '../safetensors/shards.js';
import type { Load } from '../transfer/load.js';
import { DEFAULT_BATCH_BYTES, Plan } from '../transfer/plan.js';
import { selectTensors } from '../transfer/select-tensors.js';
import type { LoadReport } from './load-report.js';
import { checkParallelOptions, type ParallelOptions } from './options.js';
import { Session } from './session.js';

/**
 * Streams a model's tensors, file by file in the order of offsets by default: a tensor waits for its own bytes and for those yielded before it, never for the rest
 * of its batch. Memory is taken batch by batch, `queueSize` ahead of what was yielded.
 */
export class ParallelLoader<T = DeviceTensor> {
  readonly #options: ParallelOptions<T>;
  readonly #session: Session;

  /** Checks the options: INVALID_ARGUMENT, UNKNOWN_COPIER. Reads nothing yet. */
  constructor(options: ParallelOptions<T>) {
    this.#options = checkParallelOptions(options);
    this.#session = new Session(this.#options as ParallelOptions);
  }

  /** Figures of the last iteration, complete when it has ended. */
  get report(): LoadReport {
    return this.#session.report;
  }

  /**
   * Yields every tensor once. Each call is a load of its own. Ending early (`break`, `return()`) cancels what is in flight and gives its memory back. Rejects with
   * the codes of headers, files, copier and device, CLOSED, TIMEOUT, STALLED, or the reason of the aborted signal.
   */
  async *iterateWeights(): AsyncGenerator<[name: string, tensor: T], void, void> {
    const session = this.#session;
    const {
      files,
      allowTrailingBytes,
      filter,
      queueSize = 0,
      maxBatchBytes = DEFAULT_BATCH_BYTES,
      order,
      timeoutMs,
      dtype,
    } = this.#options;
    session.check();
    const headerFds = session.engines.newHeaderFds();
    try {
      const reading = readShards(files, { allowTrailingBytes, byName: false, opened: headerFds }, this.#options.signal);
      const shards = await session.race(reading);
      const inputs = await session.race(selectTensors(shards.metadata, filter));
      const plan = await session.race(Plan.ofTensors(inputs, { batchBytes: maxBatchBytes, dtype }));
      const window = queueSize + 2;
      const started = milliseconds();
      const load = await session.begin(plan, { window, collectReady: order === 'ready', timeoutMs });
      const meter = session.meter(load);
      try {
        yield* order === 'ready' ? this.#asReady(load, window) : this.#inOrder(load, window);
        meter?.stop();
      } catch (error) {
        meter?.rethrow();
        throw error;
      } finally {
        meter?.abandon();
        session.finish(load, started);
      }
    } finally {
      session.engines.releaseHeaderFds(headerFds);
    }
  }

  async *#inOrder(load: Load, window: number): AsyncGenerator<[string, T], void, void> {
    const { plan } = load;
    const { borrow } = this.#options;
    const turns = new Turns(16);
    let ready = 0;
    for (let item = 0; item < plan.count; ++item) {
      if (item > 0 && plan.batchOf(item) !== plan.batchOf(item - 1)) load.setWindow(plan.batchOf(item) + window);
      while (item >= ready) ready = await this.#progress(load, () => load.readyPrefix, ready);
      this.#session.check(); // what is ready is not handed out after close() or an abort
      const tensor = load.tensor(item);
      load.releaseItem(item);
      const adopted = this.#adopt(tensor);
      const made = isPromise(adopted) ? await this.#session.adopted(adopted, borrow ? tensor : undefined) : adopted;
      try {
        yield [tensor.name, made];
      } finally {
        if (borrow) tensor.dispose();
      }
      if (turns.due()) await turns.take();
    }
  }

  async *#asReady(load: Load, window: number): AsyncGenerator<[string, T], void, void> {
    const { plan } = load;
    const { borrow } = this.#options;
    const left = new Uint32Array(plan.batchCount);
    for (let item = 0; item < plan.count; ++item) ++left[plan.batchOf(item)]!;
    let firstOpen = 0; // batches before it were yielded whole
    const turns = new Turns(16);
    let seen = 0;
    for (let yielded = 0; yielded < plan.count; ) {
      seen = await this.#progress(load, () => load.readyCount, seen);
      const ready = load.takeReady();
      for (let i = 0; i < ready.length; ++i, ++yielded) {
        const item = ready[i]!;
        this.#session.check();
        const tensor = load.tensor(item);
        load.releaseItem(item);
        const adopted = this.#adopt(tensor);
        const made = isPromise(adopted) ? await this.#session.adopted(adopted, borrow ? tensor : undefined) : adopted;
        try {
          yield [tensor.name, made];
        } finally {
          if (borrow) tensor.dispose();
        }
        --left[plan.batchOf(item)]!;
        while (firstOpen < plan.batchCount && left[firstOpen] === 0) load.setWindow(++firstOpen + window);
        if (turns.due()) await turns.take();
      }
    }
  }

  /** Waits until a counter of the load passes `from`; its new value. Rejects with the load's error. */
  async #progress(load: Load, counter: () => number, from: number): Promise<number> {
    for (;;) {
      this.#session.check();
      if (load.error) throw load.error;
      const now = counter();
      if (now > from) return now;
      await this.#session.race(load.wait());
    }
  }

  #adopt(tensor: DeviceTensor): T | Promise<T> {
    const { framework, borrow } = this.#options;
    if (borrow) tensor.borrowed = true;
    return adopt(framework, tensor);
  }

  /** Ends iterations in progress (they reject with CLOSED), waits until nothing is in flight (at most stallTimeoutMs) and gives everything back but the tensors. */
  close(): Promise<void> {
    return this.#session.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
