import { environmentSwitch } from '../base/checks.js';
import { counted } from '../base/counted.js';
import { FastSafetensorsError } from '../base/errors.js';
import { consoleLogger, type Logger, safeLogger } from '../base/logger.js';
import { held, milliseconds, within } from '../base/timers.js';
import { CallWatch, DEFAULT_STALL_TIMEOUT_MS, unlessAborted, Waits } from '../base/waiting.js';
import type { CopierConstructor } from '../copiers/copier.js';
import { CopierLoad } from '../copiers/copier-load.js';
import { Pace } from '../copiers/pace.js';
import { Device, type DeviceString } from '../device/device.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { disposeWhenMade } from '../device/framework.js';
import { native } from '../native/addon.js';
import type { Fallback, TransferOptions } from '../native/core.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import type { BudgetLimit } from '../transfer/budget-limit.js';
import { DevicesLoad } from '../transfer/devices-load.js';
import { byDevice } from '../transfer/devices-plan.js';
import { EmptyLoad } from '../transfer/empty-load.js';
import { EngineLoad } from '../transfer/engine-load.js';
import type { Load } from '../transfer/load.js';
import { MAX_ALLOCATION, type Plan } from '../transfer/plan.js';
import { type Progress, ProgressMeter, progressBar } from '../transfer/progress.js';
import type { Budget } from './budget.js';
import { Engines, type PreparedEngine, type Shared } from './engines.js';
import type { DeviceEstimate, Estimate } from './estimate.js';
import { Integrity } from './integrity.js';
import { type LoadReport, LoadReporter } from './load-report.js';
import { MAPPED_FROM, type MappedPlan, mapFiles } from './mapping.js';
import type { LoaderOptions } from './options.js';
import { type DevicePlacement, placementOf } from './placement.js';

const READ_DIRECTLY =
  'read past the page cache (O_DIRECT), where hardly any of the files was: later loads find nothing there either, ' +
  'unless odirect is false';

const HOST = Device.parse('cpu');

function deviceOf({ device = 'cpu' }: LoaderOptions): Device {
  return Device.parse(device as DeviceString); // other rules make a placement
}

function listed(names: readonly string[]): string {
  return [...new Set(names)].join(', ');
}

type BeginOptions = Omit<TransferOptions, 'timeoutMs' | 'device' | 'budget'> & { readonly keepsAll?: boolean };

/** What has begun on one device. */
interface Begun {
  readonly load: Load;
  readonly copier: string;
  readonly fallbacks: readonly Fallback[];
  readonly notes: readonly string[];
}

/** What a loader keeps between its loads, and what ends with it: loads in progress, engines, the report. */
export class Session {
  readonly options: LoaderOptions;
  /** Where tensors go, if that is several devices. */
  readonly placement: DevicePlacement | undefined;
  /** Those of the device, or of one of several. */
  readonly engines: Engines;
  readonly #device: Device;
  readonly #byDevice = new Map<string, Engines>();
  readonly #shared: Shared;
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
    const { device, devices } = options;
    const isOne = devices === undefined && (device === undefined || typeof device === 'string');
    this.placement = isOne ? undefined : placementOf(options);
    this.#shared = { engines: new Map(), placement: this.placement };
    this.#device = this.placement ? (this.placement.devices[0] ?? HOST) : deviceOf(options);
    this.#logger = options.logger ? safeLogger(options.logger) : consoleLogger;
    this.#debug = options.debugLog ?? environmentSwitch('FASTSAFETENSORS_DEBUG') ?? false;
    this.#stallTimeoutMs = options.stallTimeoutMs ?? DEFAULT_STALL_TIMEOUT_MS;
    this.engines = this.#enginesOf(this.#device);
    this.#reporter = new LoadReporter(this.engines.copier, this.#deviceNames(), this.#logger);
  }

  #deviceNames(): string {
    return (this.placement?.devices ?? [this.#device]).join(', ');
  }

  #enginesOf(device: Device): Engines {
    const name = device.toString();
    let engines = this.#byDevice.get(name);
    if (!engines) {
      engines = new Engines(this.options, device, this.#stallTimeoutMs, () => this.check(), this.#shared);
      this.#byDevice.set(name, engines);
    }
    return engines;
  }

  /** Where a tensor goes, of files that the placement was asked about. */
  deviceOf(metadata: SafeTensorsMetadata, tensor: number): Device {
    return this.placement?.deviceOf(metadata, tensor) ?? this.#device;
  }

  /** For plans: the most bytes of an allocation, by device of the placement where there is one. As Budget.limit(). */
  async allocationBytes(): Promise<number | readonly number[]> {
    const of = async (on?: Device) => (await this.budgetOf(on)?.allocationBytes()) ?? MAX_ALLOCATION;
    return this.placement ? Promise.all(this.placement.devices.map(of)) : of();
  }

  /** What a plan's load will take, where all its tensors are kept. */
  async estimate(plan: Plan, watch: CallWatch): Promise<Estimate> {
    if (plan.inputs.length === 0) return { deviceBytes: 0, stagingBytes: 0, tensors: 0 };
    const parts = plan.devices ? await byDevice(plan) : [{ device: this.#device, plan }];
    const devices: Record<string, DeviceEstimate> = {};
    const staging = new Map<unknown, number>(); // by engine: devices share some
    for (const { device, plan: part } of parts) {
      const { engine, bytes } = await this.#enginesOf(device).stagingBytes(part, watch);
      staging.set(engine ?? device, bytes);
      devices[`${device}`] = { deviceBytes: part.deviceBytes, stagingBytes: bytes, tensors: part.count };
    }
    const stagingBytes = [...staging.values()].reduce((sum, bytes) => sum + bytes, 0);
    return { deviceBytes: plan.deviceBytes, stagingBytes, tensors: plan.count, ...(plan.devices && { devices }) };
  }

  /** Of all loads to a device. */
  budgetOf(device = this.#device): Budget | undefined {
    return this.#enginesOf(device).budget;
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
      !this.placement &&
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
   * disposed before all are there. `device`: where a plan goes that says nothing of several. Rejects with what
   * Engines.prepare rejects with and, at once, with what check() throws, TIMEOUT or STALLED: there is no load then.
   */
  async begin(
    plan: Plan,
    { device = this.#device, ...options }: BeginOptions & { readonly device?: Device },
    watch: CallWatch = this.watch(),
    signal?: AbortSignal,
  ): Promise<Load> {
    this.check(signal);
    this.#loadNotes = [];
    const digesting = this.#giveDigests(plan, watch);
    digesting.catch(() => {}); // told where it is waited for
    if (plan.devices) await watch.during(digesting); // each device's plan has those of its items
    const parts = plan.devices ? await byDevice(plan) : [{ device, plan, items: new Uint32Array() }];
    if (plan.inputs.length === 0 || parts.length === 0) {
      this.#reporter.begin(this.engines.copier, this.#deviceNames(), plan.inputs.length);
      return new EmptyLoad(plan, device, new Uint32Array(0));
    }
    const begun = await this.#beginAll(parts, options, digesting, watch, signal);
    const load = plan.devices
      ? new DevicesLoad(
          plan,
          begun.map((each, i) => ({ load: each.load, items: parts[i]!.items })),
          options.window ?? Number.POSITIVE_INFINITY,
          options.collectReady ?? false,
        )
      : begun[0]!.load;
    const copiers = begun.map(({ copier }) => copier);
    const files = new Set(plan.headers).size; // some may be there twice
    this.#reporter.begin(listed(copiers), listed(parts.map((part) => part.device.toString())), files);
    for (const { fallbacks } of begun) this.#reporter.addFallbacks(fallbacks);
    this.#loadNotes = [...new Set(begun.flatMap(({ notes }) => notes))];
    this.#loads.add(load);
    for (const each of begun) if (each.load !== load) this.#loads.delete(each.load);
    this.#log(
      () =>
        `${counted(plan.count, 'tensor')}, ${plan.bytes} bytes from ${counted(plan.inputs.length, 'file')} ` +
        `to ${this.#reporter.report.device} through ${listed(copiers)}`,
    );
    return load;
  }

  /**
   * Gives a plan what its tensors are compared with; notes for the report. Another load of the plan may be under way:
   * the digests that it has stay until the same take their place.
   */
  async #giveDigests(plan: Plan, watch: CallWatch): Promise<string[]> {
    const { checksum = 'auto' } = this.options;
    const wanted = checksum === 'auto' ? plan.hasSums : checksum;
    if (!wanted) return [];
    this.#integrity ??= new Integrity(this.options);
    return this.#integrity.prepare(plan, watch);
  }

  /** Of each device its load, all begun at a time; those that have begun end where one cannot. */
  async #beginAll(
    parts: readonly { readonly device: Device; readonly plan: Plan }[],
    options: BeginOptions,
    digesting: Promise<string[]>,
    watch: CallWatch,
    signal?: AbortSignal,
  ): Promise<Begun[]> {
    const begun = await Promise.allSettled(
      parts.map(async ({ device, plan }) => {
        const each = await this.#beginOn(device, plan, options, digesting, watch, signal);
        if (parts.length > 1) this.#loads.add(each.load); // close() waits for it, also where others cannot begin
        return each;
      }),
    );
    const failed = begun.find((each) => each.status === 'rejected');
    if (!failed) return begun.map((each) => (each as PromiseFulfilledResult<Begun>).value);
    for (const each of begun) {
      if (each.status === 'rejected') continue;
      const { load } = each.value;
      load.end();
      if (load.drained) this.#loads.delete(load);
    }
    throw failed.reason;
  }

  async #beginOn(
    device: Device,
    plan: Plan,
    { keepsAll = false, ...given }: BeginOptions,
    digesting: Promise<string[]>,
    watch: CallWatch,
    signal?: AbortSignal,
  ): Promise<Begun> {
    const engines = this.#enginesOf(device);
    const [prepared, unverified] = await watch.during(Promise.all([engines.prepare(plan, watch), digesting]));
    const limit = engines.budget && (await watch.during(this.#admit(engines, plan, prepared, keepsAll)));
    const items = typeof prepared === 'function' ? await plan.itemsOfAllocations() : undefined;
    this.check(signal);
    const options = { ...given, limit, timeoutMs: Math.max(watch.leftMs, 0.001) }; // 0 would be none
    if (typeof prepared === 'function') {
      const load = this.#startCopier(prepared, plan, items!, device, options);
      return { load, copier: engines.copier, fallbacks: [], notes: unverified };
    }
    const { copier, fallbacks, engine, cold } = prepared;
    // What was cold as a whole says nothing of what is read next.
    if (!cold) this.#readsHostFiles = native().mapsFiles(engine);
    const mapped = await this.#map(engines, plan, prepared, watch);
    const load = await this.#startMapped(mapped, prepared, device, options, signal);
    const notes = [...(cold ? [READ_DIRECTLY] : []), ...unverified, ...mapped.notes];
    return { load, copier, fallbacks, notes };
  }

  /** The budget that a load has to keep to; BUDGET_INFEASIBLE where it cannot. */
  async #admit(
    { budget }: Engines,
    plan: Plan,
    prepared: PreparedEngine | CopierConstructor,
    keepsAll: boolean,
  ): Promise<BudgetLimit | undefined> {
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
    device: Device,
    options: TransferOptions & { limit?: BudgetLimit },
  ): Load {
    this.#pace ??= new Pace(this.options.maxBytesPerSecond ?? Number.POSITIVE_INFINITY);
    const limits = { stallTimeoutMs: this.#stallTimeoutMs, pace: this.#pace };
    return new CopierLoad(make, plan, items, device, { ...options, ...limits });
  }

  async #map({ budget }: Engines, plan: Plan, { engine, cold }: PreparedEngine, watch: CallWatch): Promise<MappedPlan> {
    const { mmap } = this.options;
    const small = mmap === undefined && plan.bytes < MAPPED_FROM;
    if (mmap === false || cold || small) return { plan, notes: [], release() {} };
    const most = await budget?.allocationBytes();
    return watch.during(mapFiles(plan, engine, this.options, watch, most));
  }

  async #startMapped(
    { plan, release }: MappedPlan,
    prepared: PreparedEngine,
    device: Device,
    options: TransferOptions & { limit?: BudgetLimit },
    signal?: AbortSignal,
  ): Promise<EngineLoad> {
    try {
      this.check(signal);
      return await this.#start(prepared, plan, device, options, signal);
    } finally {
      release();
    }
  }

  /** A load that starts when its caller waits no longer is ended at once; close() waits for it with its engine. */
  #start(
    { engine, device: number }: PreparedEngine,
    plan: Plan,
    device: Device,
    options: TransferOptions & { limit?: BudgetLimit },
    signal?: AbortSignal,
  ): Promise<EngineLoad> {
    const limits = { ...options, device: number, stallTimeoutMs: this.#stallTimeoutMs };
    const starting = EngineLoad.start(engine, plan, device, limits);
    const endWhenStarted = (): void => {
      starting.then(
        (load) => load.end(),
        () => {}, // there is no load, and nobody to tell
      );
    };
    return this.race(starting, signal, endWhenStarted);
  }

  /** Bytes have come from other ranks, which belong to the last load. */
  noteReceived(bytes: number): void {
    this.#reporter.received(bytes);
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
    for (const engines of this.#byDevice.values())
      engines.takeFallbacks((fallbacks) => this.#reporter.addFallbacks(fallbacks));
    this.#warn();
    this.#log(() => {
      const { tensors, bytes, maxInFlight } = this.#reporter.report;
      const reads = counted(maxInFlight, 'read');
      return `${counted(tensors, 'tensor')}, ${bytes} bytes in ${seconds.toFixed(3)} s, at most ${reads} in flight`;
    });
  }

  #warn(): void {
    const warnings = [...this.#byDevice.values()].flatMap((engines) => engines.takeWarnings());
    for (const warning of warnings) this.#logger.warn(`fastsafetensors: ${warning}`);
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

  /** unlessEnded() for who waits again and again; to be ended. */
  waits(): Waits {
    return new Waits(this.#signals());
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
    for (const load of this.#loads) load.end();
    const drained = (async () => {
      await Promise.all([...this.#byDevice.values()].map((engines) => engines.close()));
      // Of several devices some may have begun since.
      for (const load of this.#loads) {
        load.end();
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
