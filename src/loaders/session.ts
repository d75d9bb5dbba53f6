import { environmentSwitch } from '../base/checks.js';
import { counted } from '../base/counted.js';
import { FastSafetensorsError } from '../base/errors.js';
import { consoleLogger, type Logger, safeLogger } from '../base/logger.js';
import { held, milliseconds, within } from '../base/timers.js';
import { CallWatch, DEFAULT_STALL_TIMEOUT_MS, unlessAborted } from '../base/waiting.js';
import type { CopierConstructor } from '../copiers/copier.js';
import { CopierLoad } from '../copiers/copier-load.js';
import { Pace } from '../copiers/pace.js';
import { Device } from '../device/device.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { disposeWhenMade } from '../device/framework.js';
import { native } from '../native/addon.js';
import type { NativeEngine, TransferOptions } from '../native/core.js';
import type { BudgetLimit } from '../transfer/budget-limit.js';
import { EmptyLoad } from '../transfer/empty-load.js';
import { EngineLoad } from '../transfer/engine-load.js';
import type { Load } from '../transfer/load.js';
import type { Plan } from '../transfer/plan.js';
import { type Progress, ProgressMeter, progressBar } from '../transfer/progress.js';
import { Engines, type PreparedEngine } from './engines.js';
import { Integrity } from './integrity.js';
import { type LoadReport, LoadReporter } from './load-report.js';
import { MAPPED_FROM, type MappedPlan, mapFiles } from './mapping.js';
import type { LoaderOptions } from './options.js';

const READ_DIRECTLY =
  'read past the page cache (O_DIRECT), where hardly any of the files was: later loads find nothing there either, ' +
  'unless odirect is false';

/** What a loader keeps between its loads, and what ends with it: loads in progress, engines, the report. */
export class Session {
  readonly options: LoaderOptions;
  readonly device: Device;
  readonly engines: Engines;
  #integrity: Integrity | undefined; // where a file has digests, or must have
  readonly #name: string;
  readonly #logger: Logger;
  readonly #debug: boolean;
  readonly #stallTimeoutMs: number;
  readonly #reporter: LoadReporter;
  readonly #loads = new Set<Load>();
  readonly #closing = new AbortController();
  #notes: readonly string[] = []; // of the files that were read last
  #loadNotes: readonly string[] = []; // of the last load
  #readsHostFiles = false;
  #pace: Pace | undefined; // for a copier of the user's own
  #closed: Promise<void> | undefined;

  /** `name`: what messages call the thing that is closed. */
  constructor(options: LoaderOptions, name = 'the loader') {
    this.options = options;
    this.#name = name;
    this.device = Device.parse(options.device ?? 'cpu');
    this.#logger = options.logger ? safeLogger(options.logger) : consoleLogger;
    this.#debug = options.debugLog ?? environmentSwitch('FASTSAFETENSORS_DEBUG') ?? false;
    this.#stallTimeoutMs = options.stallTimeoutMs ?? DEFAULT_STALL_TIMEOUT_MS;
    this.engines = new Engines(options, this.device, this.#stallTimeoutMs, () => this.check());
    this.#reporter = new LoadReporter(this.engines.copier, this.device.toString(), this.#logger);
  }

  get report(): LoadReport {
    const { report } = this.#reporter;
    const notes = [...this.#notes, ...this.#loadNotes, ...report.notes];
    return { ...report, notes: [...notes, ...(this.options.framework?.notes ?? [])] };
  }

  /**
   * Whether loads, where any has begun and the loader is open, read into host memory through the page cache, unchanged
   * and without limits: then a tensor may also be read by the thread that asks for it.
   */
  get readsHostFiles(): boolean {
    const { dtype, maxBytesPerSecond, mmap } = this.options;
    return (
      !this.#closed &&
      this.#readsHostFiles &&
      !this.engines.budget &&
      !this.#integrity && // what has digests is compared with them
      dtype === undefined &&
      maxBytesPerSecond === undefined &&
      !mmap &&
      !this.#debug
    );
  }

  /** CLOSED after close(); the reason of a signal that is aborted. */
  check(signal?: AbortSignal): void {
    if (this.#closed) throw new FastSafetensorsError('CLOSED', `${this.#name} is closed`);
    this.options.signal?.throwIfAborted();
    signal?.throwIfAborted();
  }

  /** Takes what readShards() noted of the files into the reports of the next loads, after notes of earlier files. */
  noteFiles(notes: readonly string[], earlier: readonly string[] = []): void {
    this.#notes = [...earlier, ...notes];
    for (const note of notes) this.#log(() => note);
  }

  /** The limits of one load, from its first look at a file on. `signal` ends it, too; for `spentMs` see CallWatch. */
  watch(signal?: AbortSignal, spentMs = 0): CallWatch {
    return new CallWatch(this.options, this.#signals(signal), spentMs);
  }

  /**
   * Begins a load and a new report. The caller has to finish() or detach() the load. `keepsAll`: no tensor of it is
   * disposed before all are there. Rejects with what Engines.prepare
   * rejects with and, at once, with what check() throws, TIMEOUT or STALLED: there is no load then.
   */
  async begin(
    plan: Plan,
    { keepsAll = false, ...given }: Omit<TransferOptions, 'timeoutMs'> & { readonly keepsAll?: boolean },
    watch: CallWatch = this.watch(),
    signal?: AbortSignal,
  ): Promise<Load> {
    this.check(signal);
    this.#loadNotes = [];
    if (plan.inputs.length === 0) {
      this.#reporter.begin(this.engines.copier, 0);
      return new EmptyLoad(plan, this.device, new Uint32Array(0));
    }
    const preparing = [this.engines.prepare(plan, watch), this.#giveDigests(plan, watch)] as const;
    const [prepared, unverified] = await watch.during(Promise.all(preparing));
    const limit = this.engines.budget && (await watch.during(this.#admit(plan, prepared, keepsAll)));
    const items = typeof prepared === 'function' ? await plan.itemsOfAllocations() : undefined;
    this.check(signal);
    const options = { ...given, limit, timeoutMs: Math.max(watch.leftMs, 0.001) }; // 0 would be none
    let load: Load;
    if (typeof prepared === 'function') {
      load = this.#startCopier(prepared, plan, items!, options);
      this.#reporter.begin(this.engines.copier, plan.inputs.length);
      this.#loadNotes = unverified;
    } else {
      this.#loadNotes = prepared.cold ? [READ_DIRECTLY, ...unverified] : unverified;
      // What was cold as a whole says nothing of what is read next.
      if (!prepared.cold) this.#readsHostFiles = native().mapsFiles(prepared.engine);
      const mapped = await this.#map(plan, prepared, watch);
      load = await this.#startMapped(mapped, prepared.engine, options, signal);
      this.#reporter.begin(prepared.copier, plan.inputs.length);
      this.#reporter.addFallbacks(prepared.fallbacks);
    }
    this.#loads.add(load);
    this.#log(
      () =>
        `${counted(plan.count, 'tensor')}, ${plan.bytes} bytes from ${counted(plan.inputs.length, 'file')} ` +
        `to ${this.device} through ${this.engines.copier}`,
    );
    return load;
  }

  /** Gives a plan what its tensors are compared with; notes for the report. */
  async #giveDigests(plan: Plan, watch: CallWatch): Promise<string[]> {
    plan.digests = undefined;
    plan.proven = undefined;
    const { checksum = 'auto' } = this.options;
    const wanted = checksum === 'auto' ? plan.inputs.some(({ metadata }) => metadata.hasSums) : checksum;
    if (!wanted) return [];
    this.#integrity ??= new Integrity(this.options);
    return this.#integrity.prepare(plan, watch);
  }

  /** The budget that a load has to keep to; BUDGET_INFEASIBLE where it cannot. */
  async #admit(
    plan: Plan,
    prepared: PreparedEngine | CopierConstructor,
    keepsAll: boolean,
  ): Promise<BudgetLimit | undefined> {
    const { budget } = this.engines;
    const limit = await budget?.limit();
    if (!budget || !limit) return undefined;
    if (typeof prepared === 'function') {
      await budget.admit(plan, undefined, 0, keepsAll);
    } else {
      const { engine, stagesOnDevice } = prepared;
      const staging = stagesOnDevice ? native().stagingBytes(engine, plan.converts || plan.hasRuns) : 0;
      await budget.admit(plan, engine, staging, keepsAll);
    }
    return limit;
  }

  #startCopier(
    make: CopierConstructor,
    plan: Plan,
    items: Uint32Array,
    options: TransferOptions & { limit?: BudgetLimit },
  ): Load {
    this.#pace ??= new Pace(this.options.maxBytesPerSecond ?? Number.POSITIVE_INFINITY);
    const limits = { stallTimeoutMs: this.#stallTimeoutMs, pace: this.#pace };
    return new CopierLoad(make, plan, items, this.device, { ...options, ...limits });
  }

  async #map(plan: Plan, { engine, cold }: PreparedEngine, watch: CallWatch): Promise<MappedPlan> {
    const { mmap } = this.options;
    const small = mmap === undefined && plan.bytes < MAPPED_FROM;
    if (mmap === false || cold || small) return { plan, notes: [], release() {} };
    const most = await this.engines.budget?.allocationBytes();
    return watch.during(mapFiles(plan, engine, this.options, watch, most));
  }

  async #startMapped(
    { plan, notes, release }: MappedPlan,
    engine: NativeEngine,
    options: TransferOptions & { limit?: BudgetLimit },
    signal?: AbortSignal,
  ): Promise<EngineLoad> {
    try {
      this.check(signal);
      const load = await this.#start(engine, plan, options, signal);
      this.#loadNotes = [...this.#loadNotes, ...notes];
      return load;
    } finally {
      release();
    }
  }

  /** A load that starts when its caller waits no longer is ended at once; close() waits for it with its engine. */
  #start(
    engine: NativeEngine,
    plan: Plan,
    options: TransferOptions & { limit?: BudgetLimit },
    signal?: AbortSignal,
  ): Promise<EngineLoad> {
    const limits = { ...options, stallTimeoutMs: this.#stallTimeoutMs };
    const starting = EngineLoad.start(engine, plan, this.device, limits);
    const endWhenStarted = (): void => {
      starting.then(
        (load) => load.end(),
        () => {}, // there is no load, and nobody to tell
      );
    };
    return this.race(starting, signal, endWhenStarted);
  }

  /** Takes a load's figures into the report and leaves the load, with its allocations, to the caller. */
  detach(load: Load, startedMs: number): void {
    this.#note(load, startedMs);
    this.#loads.delete(load);
  }

  /** Takes a load's figures into the report and ends the load. */
  finish(load: Load, startedMs: number): void {
    this.#note(load, startedMs);
    load.end();
    if (load.drained) this.#loads.delete(load); // else close() waits for it
  }

  #note(load: Load, startedMs: number): void {
    const seconds = (milliseconds() - startedMs) / 1000;
    this.#reporter.note(load, seconds);
    this.engines.takeFallbacks((fallbacks) => this.#reporter.addFallbacks(fallbacks));
    this.#warn();
    this.#log(() => {
      const { tensors, bytes, maxInFlight } = this.#reporter.report;
      const reads = counted(maxInFlight, 'read');
      return `${counted(tensors, 'tensor')}, ${bytes} bytes in ${seconds.toFixed(3)} s, at most ${reads} in flight`;
    });
  }

  #warn(): void {
    for (const warning of this.engines.takeWarnings()) this.#logger.warn(`fastsafetensors: ${warning}`);
  }

  #log(message: () => string): void {
    if (this.#debug) this.#logger.debug(`fastsafetensors: ${message()}`);
  }

  /** Reports progress to the callback of this load, else the loader's, and on the bar. Undefined without any. */
  meter(load: Load, onProgress = this.options.onProgress): ProgressMeter | undefined {
    const bar = this.options.progress && (this.options.pg?.rank ?? 0) === 0 ? progressBar() : undefined;
    if (!onProgress && !bar) return undefined;
    const report = (progress: Progress): unknown => {
      const outcome: unknown = onProgress?.(progress);
      bar?.(progress);
      return outcome;
    };
    const late = (error: unknown): void => {
      const text = error instanceof Error ? error.message : String(error);
      this.#logger.warn(`fastsafetensors: onProgress has rejected after its load had ended: ${text}`);
    };
    return new ProgressMeter(load, report, late);
  }

  /** Yields what `items` does, which comes of this load; reports progress meanwhile, and finishes the load. */
  async *through<V>(
    load: Load,
    startedMs: number,
    items: AsyncGenerator<V, void, void>,
    onProgress?: (progress: Progress) => void,
  ): AsyncGenerator<V, void, void> {
    const meter = this.meter(load, onProgress);
    try {
      yield* items;
      await meter?.stop();
    } catch (error) {
      meter?.rethrow();
      throw error;
    } finally {
      meter?.abandon();
      this.finish(load, startedMs);
    }
  }

  /** unlessAborted() by the loader's signal, this one, or close() (CLOSED). Keeps the event loop alive. */
  race<T>(promise: Promise<T>, signal?: AbortSignal, abandoned?: () => void): Promise<T> {
    return held(this.unlessEnded(promise, signal, abandoned));
  }

  /** race() for what nobody may wait for: it does not keep the event loop alive. */
  unlessEnded<T>(promise: Promise<T>, signal?: AbortSignal, abandoned?: () => void): Promise<T> {
    return unlessAborted(promise, this.#signals(signal), abandoned);
  }

  #signals(signal?: AbortSignal): AbortSignal[] {
    return [this.options.signal, signal, this.#closing.signal].filter((given) => given !== undefined);
  }

  /**
   * race() for what a framework makes of a tensor, which is disposed when it comes too late. `borrowed`: the tensor,
   * where the adapter does not own it.
   */
  adopted<T>(making: Promise<T>, borrowed?: DeviceTensor): Promise<T> {
    return this.race(making, undefined, () => disposeWhenMade(making, borrowed));
  }

  /**
   * Ends every load, waits at most stallTimeoutMs until nothing is in flight, and frees slots and threads. A second
   * call waits for the first.
   */
  close(): Promise<void> {
    this.#closed ??= held(this.#close());
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#closing.abort(new FastSafetensorsError('CLOSED', `${this.#name} was closed while this was in progress`));
    const loads = [...this.#loads];
    for (const load of loads) load.end();
    const drained = (async () => {
      await this.engines.close();
      for (const load of loads) {
        while (!load.drained) await load.wait();
      }
    })();
    if (!(await within(this.#stallTimeoutMs, drained))) {
      this.#logger.warn(
        'fastsafetensors: a read, or the closing of a file, has not come back ' +
          `${this.#stallTimeoutMs} ms after close(); what it holds is kept until it does`,
      );
    }
    this.#warn();
    this.#loads.clear();
  }
}
