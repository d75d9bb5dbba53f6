import { takesAtMost } from '../base/checks.js';
import { keepExample } from '../base/examples.js';
import { held, milliseconds, Turns } from '../base/timers.js';
import type { CallWatch, Waits } from '../base/waiting.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { adopt, type Framework, isPromise } from '../device/framework.js';
import type { NativeHeaderFdCache } from '../native/core.js';
import type { ShardSet } from '../safetensors/shard-set.js';
import { type ReadOptions, readShards } from '../safetensors/shards.js';
import type { Load } from '../transfer/load.js';
import { DEFAULT_BATCH_BYTES, Plan } from '../transfer/plan.js';
import { selectTensors } from '../transfer/select-tensors.js';
import type { StreamEstimate } from './estimate.js';
import type { LoadReport } from './load-report.js';
import { checkParallelOptions, type ParallelOptions } from './options.js';
import { Session } from './session.js';
import type { Streaming } from './stream-estimate.js';

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
  iterateWeights(): AsyncGenerator<[name: string, tensor: T], void, void> {
    return new Handing(this.#iterate(arguments, false));
  }

  /**
   * For `for await (const [name, tensor] of loader)`: iterateWeights(), and close() when the loop ends, by `break` or
   * an error as well.
   */
  [Symbol.asyncIterator](): AsyncGenerator<[name: string, tensor: T], void, void> {
    return new Handing(this.#iterate([], true));
  }

  /** As Session.through, in one generator: each that yields what another does costs three microtask turns a wait. */
  async *#iterate(given: ArrayLike<unknown>, closes: boolean): Tensors<T> {
    const session = this.#session;
    const { engines } = session;
    try {
      takesAtMost(0, given, 'iterateWeights');
      session.check();
      const reservation = engines.reserveEarly();
      const headerFds = engines.newHeaderFds();
      try {
        const { load, items, startedMs } = await this.#begin(headerFds);
        const meter = session.meter(load);
        const handOut = new HandOut<T>(session, load, items, this.#options);
        try {
          for (;;) {
            yield handOut;
            const more = handOut.more();
            if (!more) break;
            await more;
          }
          await meter?.stop();
        } catch (error) {
          meter?.rethrow();
          throw error;
        } finally {
          handOut.end();
          meter?.abandon();
          session.finish(load, startedMs);
        }
      } finally {
        engines.releaseHeaderFds(headerFds);
        engines.dropReservation(reservation);
      }
    } finally {
      if (closes) await this.close();
    }
  }

  async #begin(fdCache: NativeHeaderFdCache | undefined): Promise<{ load: Load; items: NextItems; startedMs: number }> {
    const session = this.#session;
    const watch = session.watch();
    const found = (paths: readonly string[]): void => session.engines.prepareEarly(paths, watch);
    const shards = await watch.during(this.#read(watch, { fdCache, found }));
    session.noteFiles(shards.notes);
    const plan = await this.#planOf(shards, watch);
    const { window, inOrder } = this.#streaming;
    const startedMs = milliseconds();
    const load = await session.begin(plan, { window, collectReady: !inOrder }, watch);
    const items = inOrder
      ? new ItemsInOrder(load, window)
      : new ReadyItems(load, window, await itemsOfBatches(load.plan));
    return { load, items, startedMs };
  }

  #read(calls: CallWatch, reading: Pick<ReadOptions, 'fdCache' | 'found'>): Promise<ShardSet> {
    const { headerOf } = this.#session.engines;
    return readShards(this.#options.files, { ...this.#options, byName: false, headerOf, calls, ...reading });
  }

  /** Of all tensors that are wanted. */
  async #planOf(shards: ShardSet, watch: CallWatch): Promise<Plan> {
    const session = this.#session;
    const { filter, dtype, dtypePolicy, maxBatchBytes = DEFAULT_BATCH_BYTES } = this.#options;
    const inputs = filter ? await session.race(selectTensors(shards.inputs, filter)) : shards.inputs;
    const { placement } = session;
    if (placement) await session.race(placement.assign(inputs));
    const allocationBytes = await watch.during(session.allocationBytes());
    const batches = { batchBytes: maxBatchBytes, allocationBytes, placement };
    return session.race(Plan.ofTensors(inputs, { ...batches, dtype, dtypePolicy }));
  }

  get #streaming(): Streaming {
    const { queueSize = 0, order } = this.#options;
    return { window: queueSize + 2, inOrder: order !== 'ready' };
  }

  /**
   * What an iteration will take, together and by device, where each tensor is kept, or (streamedBytes) disposed before
   * the next one; reads the headers for it. Rejects with the codes of headers and files, UNSUPPORTED_DTYPE,
   * INVALID_ARGUMENT, DEVICE_UNAVAILABLE, CLOSED, TIMEOUT, STALLED, what the filter throws, or the reason of the
   * aborted signal.
   */
  async estimate(): Promise<StreamEstimate> {
    const session = this.#session;
    takesAtMost(0, arguments, 'estimate');
    session.check();
    const watch = session.watch();
    const shards = await watch.during(this.#read(watch, {}));
    const plan = await this.#planOf(shards, watch);
    const { ofStream } = require('./stream-estimate.js') as typeof import('./stream-estimate.js');
    return watch.during(ofStream(session, plan, this.#streaming, watch));
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

/** Items of a load in the order in which they are handed out. */
interface NextItems {
  /** The next one, undefined while it is not ready. Those before it were taken. Throws the load's error. */
  next(): number | undefined;
}

/** In their own order. The window moves on, on all devices, when the first item of a batch is asked for. */
class ItemsInOrder implements NextItems {
  readonly #load: Load;
  readonly #window: number;
  #item = 0;
  #ready = 0;
  #batch = 0;

  constructor(load: Load, window: number) {
    this.#load = load;
    this.#window = window;
  }

  next(): number | undefined {
    const load = this.#load;
    const item = this.#item;
    const batch = load.plan.batchOf(item);
    if (batch > this.#batch) {
      this.#batch = batch;
      load.setWindow(batch + this.#window);
    }
    if (item === this.#ready) {
      if (load.error) throw load.error;
      this.#ready = load.readyPrefix;
    }
    return item < this.#ready ? this.#item++ : undefined;
  }
}

async function itemsOfBatches(plan: Plan): Promise<Uint32Array> {
  const items = new Uint32Array(plan.batchCount);
  for (const [allocation, count] of (await plan.itemsOfAllocations()).entries())
    items[plan.allocationBatches[allocation]!]! += count;
  return items;
}

/** As they become ready. The window moves on when a batch and all before it were taken. */
class ReadyItems implements NextItems {
  readonly #load: Load;
  readonly #window: number;
  readonly #left: Uint32Array; // of each batch
  #firstOpen = 0; // batches before it were taken whole
  #ready: ArrayLike<number> = [];
  #taken = 0; // of #ready

  constructor(load: Load, window: number, itemsOfBatches: Uint32Array) {
    this.#load = load;
    this.#window = window;
    this.#left = itemsOfBatches;
  }

  next(): number | undefined {
    const load = this.#load;
    const { plan } = load;
    if (this.#taken > 0) {
      --this.#left[plan.batchOf(this.#ready[this.#taken - 1]!)]!;
      while (this.#firstOpen < plan.batchCount && this.#left[this.#firstOpen] === 0)
        load.setWindow(++this.#firstOpen + this.#window);
    }
    if (this.#taken === this.#ready.length) {
      this.#taken = 0;
      if (load.error) throw load.error;
      this.#ready = load.takeReady();
    }
    return this.#taken < this.#ready.length ? this.#ready[this.#taken++] : undefined;
  }
}

/** For Handing. */
type Tensors<T> = AsyncGenerator<Taking<[name: string, tensor: T]>, void, void>;

/** A load's tensors on their way to the consumer. */
class HandOut<T> implements Taking<[name: string, tensor: T]> {
  static {
    const session = { waits: () => {} } as unknown as Session;
    const load = { plan: { count: 0 } } as Load;
    keepExample(new HandOut(session, load, new ItemsInOrder(load, 0), {} as ParallelOptions<DeviceTensor>));
  }

  readonly #session: Session;
  readonly #load: Load;
  readonly #items: NextItems;
  readonly #framework: Framework<T> | undefined;
  readonly #borrow: boolean;
  readonly #count: number;
  readonly #turns = new Turns(16); // while tensors are ready, nothing else gives the event loop any
  readonly #waits: Waits;
  #handedOut = 0;
  #turnDue = false;
  #adopting: { tensor: DeviceTensor; adopted: Promise<T> } | undefined;
  #made: { tensor: DeviceTensor; adopted: T } | undefined;
  #lent: DeviceTensor | undefined; // until the next one is asked for

  constructor(session: Session, load: Load, items: NextItems, { framework, borrow = false }: ParallelOptions<T>) {
    this.#session = session;
    this.#load = load;
    this.#items = items;
    this.#framework = framework;
    this.#borrow = borrow;
    this.#count = load.plan.count;
    this.#waits = session.waits();
  }

  take(): [name: string, tensor: T] | undefined {
    this.#lent?.dispose();
    this.#lent = undefined;
    if (this.#made) {
      const { tensor, adopted } = this.#made;
      this.#made = undefined;
      return this.#give(tensor, adopted);
    }
    if (this.#handedOut === this.#count) return undefined;
    this.#session.check(); // also where the next one is ready: nothing is handed out after close() or an abort
    this.#turnDue ||= this.#turns.due();
    const item = this.#turnDue ? undefined : this.#items.next();
    if (item === undefined) return undefined;
    const tensor = this.#load.tensor(item);
    this.#load.releaseItem(item);
    ++this.#handedOut;
    if (this.#borrow) tensor.borrowed = true;
    if (!this.#framework) return this.#give(tensor, tensor as T);
    const adopted = adopt(this.#framework, tensor);
    if (!isPromise(adopted)) return this.#give(tensor, adopted);
    this.#adopting = { tensor, adopted };
    return undefined;
  }

  #give(tensor: DeviceTensor, adopted: T): [string, T] {
    if (this.#borrow) this.#lent = tensor;
    return [tensor.name, adopted];
  }

  /** Resolves when take() may give something again; undefined when it has given all. */
  more(): Promise<void> | undefined {
    if (this.#adopting) return this.#adopt(this.#adopting);
    if (this.#handedOut === this.#count) return undefined;
    if (!this.#turnDue) return held(this.#waits.until(this.#load.wait()));
    this.#turnDue = false;
    return this.#turns.take();
  }

  async #adopt({ tensor, adopted }: { tensor: DeviceTensor; adopted: Promise<T> }): Promise<void> {
    this.#adopting = undefined;
    this.#made = { tensor, adopted: await this.#session.adopted(adopted, this.#borrow ? tensor : undefined) };
  }

  end(): void {
    this.#waits.end();
    this.#lent?.dispose();
  }
}

/** What gives values one by one. */
export interface Taking<V> {
  /** The next one now, undefined where it is not there yet, or the event loop is to have a turn. */
  take(): V | undefined;
}

/**
 * An async generator that is as fast as its values are there. `source` yields whenever some may be, each time what they
 * are taken from; it is resumed when that gives none, and with what that throws. (A generator that yields each value
 * itself costs three turns of the microtask queue a value, one more for each `yield*`.)
 */
export class Handing<V extends object> implements AsyncGenerator<V, void, void> {
  static {
    keepExample(new Handing((async function* () {})()));
  }

  readonly #source: AsyncGenerator<Taking<V>, void, void>;
  #from: Taking<V> | undefined;
  #isWaiting = false; // a call does; later ones come after it
  readonly #later: (() => void)[] = [];

  constructor(source: AsyncGenerator<Taking<V>, void, void>) {
    this.#source = source;
  }

  next(): Promise<IteratorResult<V, void>> {
    if (this.#isWaiting) return this.#inTurn(() => this.#next(this.#from));
    try {
      const value = this.#from?.take();
      if (value !== undefined) return Promise.resolve({ value, done: false });
    } catch (error) {
      return this.#inTurn(() => this.#fail(error));
    }
    return this.#wait();
  }

  return(): Promise<IteratorResult<V, void>> {
    return this.#inTurn(async () => {
      this.#from = undefined;
      await this.#source.return();
      return { value: undefined, done: true };
    });
  }

  throw(error: unknown): Promise<IteratorResult<V, void>> {
    return this.#inTurn(() => this.#fail(error));
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }

  get [Symbol.toStringTag](): string {
    return 'AsyncGenerator';
  }

  /** As #inTurn, of #next(); without a function of its own for each wait, of which V8 would compile each. */
  async #wait(): Promise<IteratorResult<V, void>> {
    this.#isWaiting = true;
    try {
      return await this.#next();
    } finally {
      this.#pass();
    }
  }

  /** `from`: what to try before the source is asked. */
  async #next(from?: Taking<V>): Promise<IteratorResult<V, void>> {
    for (;;) {
      try {
        const value = from?.take();
        if (value !== undefined) return { value, done: false };
      } catch (error) {
        return this.#fail(error);
      }
      this.#from = undefined; // that of a source that has ended, or has thrown, gives nothing any more
      const { value: more, done } = await this.#source.next();
      if (done) return { value: undefined, done };
      this.#from = from = more;
    }
  }

  async #fail(error: unknown): Promise<IteratorResult<V, void>> {
    this.#from = undefined;
    await this.#source.throw(error);
    return { value: undefined, done: true };
  }

  /** Calls `begin` when the calls before have settled. */
  async #inTurn(begin: () => Promise<IteratorResult<V, void>>): Promise<IteratorResult<V, void>> {
    if (this.#isWaiting) await new Promise<void>((resolve) => this.#later.push(resolve));
    this.#isWaiting = true;
    try {
      return await begin();
    } finally {
      this.#pass();
    }
  }

  /** The turn to the next call. */
  #pass(): void {
    const later = this.#later.shift();
    if (later) later();
    else this.#isWaiting = false;
  }
}
