import { takesAtMost } from '../base/checks.js';
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
 * Streams a model's tensors, by default file by file in the order of offsets: a tensor waits for its own bytes and for
 * the tensors before it, never for the rest of its batch. Memory is allocated batch by batch, `queueSize` ahead of what
 * was yielded.
 */
export class ParallelLoader<T = DeviceTensor> {
  readonly #options: ParallelOptions<T>;
  readonly #session: Session;

  /** Checks the options: INVALID_ARGUMENT, UNKNOWN_COPIER, UNSUPPORTED_DTYPE. Reads nothing yet. */
  constructor(options: ParallelOptions<T>) {
    takesAtMost(1, arguments, 'ParallelLoader');
    this.#options = checkParallelOptions(options);
    this.#session = new Session(this.#options as ParallelOptions);
  }

  /** Figures of the last iteration, complete when it has ended. */
  get report(): LoadReport {
    return this.#session.report;
  }

  /**
   * Yields every tensor once; the caller disposes them. Each call is a load of its own. Ending early (`break`,
   * `return()`) cancels what is in flight and frees its memory. Rejects with the codes of headers, files, copier and
   * device, CLOSED, TIMEOUT, STALLED, or the reason of the aborted signal.
   */
  async *iterateWeights(): AsyncGenerator<[name: string, tensor: T], void, void> {
    const session = this.#session;
    takesAtMost(0, arguments, 'iterateWeights');
    const { files, filter, dtype, queueSize = 0, order } = this.#options;
    const { maxBatchBytes = DEFAULT_BATCH_BYTES } = this.#options;
    session.check();
    const { headerOf } = session.engines;
    const reservation = session.engines.reserveEarly();
    const headerFds = session.engines.newHeaderFds();
    const watch = session.watch();
    try {
      const found = (paths: readonly string[]): void => session.engines.prepareEarly(paths, watch);
      const reading = { byName: false, fdCache: headerFds, headerOf, calls: watch, found };
      const shards = await watch.during(readShards(files, { ...this.#options, ...reading }));
      session.noteFiles(shards.notes);
      const inputs = filter ? await session.race(selectTensors(shards.inputs, filter)) : shards.inputs;
      const conversion = { dtype, dtypePolicy: this.#options.dtypePolicy };
      const plan = await session.race(Plan.ofTensors(inputs, { batchBytes: maxBatchBytes, ...conversion }));
      const window = queueSize + 2;
      const started = milliseconds();
      const load = await session.begin(plan, { window, collectReady: order === 'ready' }, watch);
      const meter = session.meter(load);
      try {
        yield* this.#handOut(load, order === 'ready' ? asReady(load, window) : inOrder(load, window));
        await meter?.stop();
      } catch (error) {
        meter?.rethrow();
        throw error;
      } finally {
        meter?.abandon();
        session.finish(load, started);
      }
    } finally {
      session.engines.releaseHeaderFds(headerFds);
      session.engines.dropReservation(reservation);
    }
  }

  /**
   * For `for await (const [name, tensor] of loader)`: iterateWeights(), and close() when the loop ends, by `break` or
   * an error as well.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<[name: string, tensor: T], void, void> {
    try {
      yield* this.iterateWeights();
    } finally {
      await this.close();
    }
  }

  async *#handOut(load: Load, next: NextItem): AsyncGenerator<[string, T], void, void> {
    const session = this.#session;
    const { framework, borrow } = this.#options;
    const turns = new Turns(16); // while tensors are ready, nothing else gives the event loop any
    for (let handedOut = 0; handedOut < load.plan.count; ++handedOut) {
      session.check(); // also where the next one is ready: nothing is handed out after close() or an abort
      let item = next();
      for (; item === undefined; item = next()) {
        await session.race(load.wait());
        session.check();
      }
      const tensor = load.tensor(item);
      load.releaseItem(item);
      if (borrow) tensor.borrowed = true;
      let made = tensor as T;
      if (framework) {
        const adopted = adopt(framework, tensor);
        made = isPromise(adopted) ? await session.adopted(adopted, borrow ? tensor : undefined) : adopted;
      }
      try {
        yield [tensor.name, made];
      } finally {
        if (borrow) tensor.dispose();
      }
      if (turns.due()) await turns.take();
    }
  }

  /**
   * Ends iterations in progress, which reject with CLOSED; waits at most stallTimeoutMs until nothing is in flight, and
   * frees everything but the tensors.
   */
  close(): Promise<void> {
    return this.#session.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** The item to hand out next, undefined while it is not ready. Those before it were taken. Throws the load's error. */
type NextItem = () => number | undefined;

/** Items in their order. The window moves on when the first item of a batch is asked for. */
function inOrder(load: Load, window: number): NextItem {
  const { plan } = load;
  let item = 0;
  let ready = 0;
  let batch = 0;
  return () => {
    if (plan.batchOf(item) !== batch) {
      batch = plan.batchOf(item);
      load.setWindow(batch + window);
    }
    if (item === ready) {
      if (load.error) throw load.error;
      ready = load.readyPrefix;
    }
    return item < ready ? item++ : undefined;
  };
}

/** Items as they become ready. The window moves on when a batch and all before it were taken. */
function asReady(load: Load, window: number): NextItem {
  const { plan } = load;
  const left = new Uint32Array(plan.batchCount); // items of each batch
  for (let item = 0; item < plan.count; ++item) ++left[plan.batchOf(item)]!;
  let firstOpen = 0; // batches before it were taken whole
  let ready: ArrayLike<number> = [];
  let taken = 0; // of `ready`
  return () => {
    if (taken > 0) {
      --left[plan.batchOf(ready[taken - 1]!)]!;
      while (firstOpen < plan.batchCount && left[firstOpen] === 0) load.setWindow(++firstOpen + window);
    }
    if (taken === ready.length) {
      taken = 0;
      if (load.error) throw load.error;
      ready = load.takeReady();
    }
    return taken < ready.length ? ready[taken++] : undefined;
  };
}
