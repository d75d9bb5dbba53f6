import { unlessAborted } from '../base/abort.js';
import { counted } from '../base/counted.js';
import { FastSafetensorsError } from '../base/errors.js';
import { after, milliseconds } from '../base/timers.js';
import { openUnified } from '../copiers/availability.js';
import type { CopierConstructor } from '../copiers/copier.js';
import { CopierLoad } from '../copiers/copier-load.js';
import type { EngineSpec } from '../copiers/engine-spec.js';
import { chooseCopier, isBuiltin, makeCopier } from '../copiers/registry.js';
import { Device, openDevice } from '../device/device.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { disposeWhenMade } from '../device/framework.js';
import { checked, native } from '../native/addon.js';
import type { Fallback, NativeEngine, NativeHeaderFdCache, TransferOptions } from '../native/core.js';
import { EngineLoad } from '../transfer/engine-load.js';
import type { Load } from '../transfer/load.js';
import type { Plan } from '../transfer/plan.js';
import { type Progress, ProgressMeter, progressBar } from '../transfer/progress.js';
import type { LoaderOptions, Logger } from './options.js';

/** How a load's files are read. */
interface Opened {
  readonly engine: NativeEngine;
  readonly copier: string;
  readonly fallbacks: readonly Fallback[];
}

/** What a loader did, as far as it is; all zero before its first load. */
export interface LoadReport {
  copier: string;
  device: string;
  files: number;
  tensors: number;
  bytes: number;
  seconds: number;
  bytesPerSecond: number;
  /** Reads (requests, for a copier of your own) in flight at a time, at most. */
  maxInFlight: number;
  fallbacks: { path: string; from: string; to: string; reason: string }[];
  /** What the framework's adapter says of its tensors: copies that were needed, dtypes that changed. Absent when there is nothing to say. */
  notes?: readonly string[];
}

const DEFAULT_STALL_TIMEOUT_MS = 90_000;

/** Copiers that read, or may read, through descriptors as headers are read through. */
const BY_DESCRIPTOR: readonly string[] = ['auto', '3fs', 'nogds', 'unified'];

const CONSOLE: Logger = {
  debug: (message) => console.debug(message),
  info: (message) => console.info(message),
  warn: (message) => console.warn(message),
};

/** What a loader keeps between its loads: the device, the copier's engine, the report; and what ends with it. */
export class Session {
  readonly options: LoaderOptions;
  readonly device: Device;
  readonly #name: string;
  #copier: string; // 'auto' until the first load
  readonly #logger: Logger;
  readonly #debug: boolean;
  readonly #stallTimeoutMs: number;
  readonly #loads = new Set<Load>();
  readonly #opened = new Set<NativeHeaderFdCache>();
  readonly #lettingGo = new Set<Promise<void>>();
  readonly #warnedOf = new Set<string>(); // files that are read in another way than asked
  readonly #closing = new AbortController();
  #choice: Promise<string> | undefined;
  #made: EngineSpec | CopierConstructor | undefined;
  readonly #engines = new Map<string, Promise<NativeEngine>>(); // by how they read: one, but for files on several mounts
  #closed: Promise<void> | undefined;
  #stagingBytes = 0;
  #report: LoadReport;

  /** `name` is what messages call the thing that is closed. */
  constructor(options: LoaderOptions, name = 'the loader') {
    this.options = options;
    this.#name = name;
    this.device = Device.parse(options.device ?? 'cpu');
    this.#copier = options.copier ?? 'auto';
    this.#logger = unfailing(options.logger ?? CONSOLE);
    this.#debug = options.debugLog ?? Boolean(process.env.FASTSAFETENSORS_DEBUG);
    this.#stallTimeoutMs = options.stallTimeoutMs ?? DEFAULT_STALL_TIMEOUT_MS;
    this.#report = this.#emptyReport();
  }

  get report(): LoadReport {
    const notes = this.options.framework?.notes;
    return { ...this.#report, fallbacks: [...this.#report.fallbacks], ...(notes?.length && { notes: [...notes] }) };
  }

  get closed(): boolean {
    return this.#closed !== undefined;
  }

  debug(message: string): void {
    if (this.#debug) this.#logger.debug(`fastsafetensors: ${message}`);
  }

  /** CLOSED after close(); the signal's reason when it is aborted. */
  check(signal?: AbortSignal): void {
    if (this.closed) throw new FastSafetensorsError('CLOSED', `${this.#name} is closed`);
    this.options.signal?.throwIfAborted();
    signal?.throwIfAborted();
  }

  /**
   * Where files whose headers are read stay open for their data, until letGo() or close(). Undefined where the copier opens files in a way of its own.
   */
  keepFiles(): NativeHeaderFdCache | undefined {
    const { copier = 'auto', reader, odirect } = this.options;
    if (!BY_DESCRIPTOR.includes(copier) || !isBuiltin(copier)) return undefined;
    if (reader !== undefined || odirect === true) return undefined;
    const opened = native().newHeaderFdCache();
    this.#opened.add(opened);
    return opened;
  }

  /** Closes what no load has taken; close() waits for it. */
  letGo(opened: NativeHeaderFdCache | undefined): void {
    if (!opened || !this.#opened.delete(opened)) return;
    const closing = native().closeHeaderFdCache(opened);
    this.#lettingGo.add(closing);
    void closing.finally(() => this.#lettingGo.delete(closing)).catch(() => {});
  }

  /** Opens the device and starts the copier's engine, so that estimateStaging() can tell. What goes wrong is begin()'s to say. */
  async prepare(plan: Plan): Promise<void> {
    try {
      const opened = await this.#open(plan);
      this.#stagingBytes = opened ? native().stagingBytes(opened.engine, plan.converts) : 0;
    } catch {
      // Said again by begin().
    }
  }

  /** The engine of a built-in copier for a plan's files; undefined for a copier of the user's own. */
  async #open(plan: Plan): Promise<Opened | undefined> {
    this.check();
    const files = plan.inputs.map(({ metadata }) => metadata.path);
    const asked = this.options.copier ?? 'auto';
    if (this.#copier === 'auto') {
      this.#choice ??= chooseCopier(this.device, files, this.options);
      this.#copier = await this.#choice;
      this.check(); // what is made from here on, close() has to know
      if (!BY_DESCRIPTOR.includes(this.#copier)) for (const opened of [...this.#opened]) this.letGo(opened);
    }
    this.#made ??= makeCopier(this.#copier, this.device, { ...this.options, copier: asked });
    const made = this.#made;
    if (typeof made === 'function' && plan.converts) {
      throw new FastSafetensorsError(
        'UNSUPPORTED_DTYPE',
        `copier "${this.#copier}" moves bytes as they are stored, and some tensors would have to be converted: load without dtype, or with copier: 'nogds'`,
      );
    }
    if (typeof made === 'function') return undefined;
    const chosen = made.resolveForFiles
      ? await made.resolveForFiles(files)
      : { spec: made, copier: this.#copier, fallbacks: [] };
    this.check();
    const instead = plan.converts ? chosen.spec.conversionFallback : undefined;
    const engine = await this.#engineFor(instead?.spec ?? chosen.spec);
    if (!instead) return { ...chosen, engine };
    const { copier: to, reason } = instead;
    const fallbacks = files.map((path) => ({ path, from: chosen.copier, to, reason }));
    return { engine, copier: to, fallbacks: [...chosen.fallbacks, ...fallbacks] };
  }

  async #engineFor(spec: EngineSpec): Promise<NativeEngine> {
    const key = JSON.stringify([spec.reader, spec.unified]);
    let opening = this.#engines.get(key);
    if (!opening) {
      const options = {
        stallTimeoutMs: this.#stallTimeoutMs,
        converts: this.options.dtype !== undefined,
        ...defined(spec.engine),
      };
      const device = spec.unified ? openUnified(this.device) : openDevice(this.device);
      opening = device.then((opened) => checked(() => native().createEngine(opened, spec.reader, options)));
      this.#engines.set(key, opening);
    }
    try {
      return await opening;
    } catch (error) {
      this.#engines.delete(key);
      throw error;
    }
  }

  /**
   * Begins a load and a new report. Rejects with DEVICE_UNAVAILABLE, COPIER_UNAVAILABLE, UNSUPPORTED_DTYPE (a plan that converts, a copier of the user's own) and, at once, with what check() throws: then there is no load. One that is
   * returned is the caller's to finish() or keep().
   */
  async begin(plan: Plan, options: TransferOptions, signal?: AbortSignal): Promise<Load> {
    this.check(signal);
    const opened = await this.race(this.#open(plan), signal);
    this.check(signal);
    const load = opened
      ? await this.#start(opened.engine, plan, options, signal)
      : new CopierLoad(this.#made as CopierConstructor, plan, this.device, {
          ...options,
          stallTimeoutMs: this.#stallTimeoutMs,
        });
    this.#loads.add(load);
    this.#report = { ...this.#emptyReport(), files: plan.inputs.length };
    if (opened) {
      this.#report.copier = opened.copier;
      this.#noteFallbacks(opened.fallbacks);
    }
    this.debug(
      `${counted(plan.count, 'tensor')}, ${plan.bytes} bytes from ${counted(plan.inputs.length, 'file')} to ${this.device} through ${this.#copier}`,
    );
    return load;
  }

  /** A load that starts too late for its caller is ended at once; close() waits for it with the engine. */
  async #start(engine: NativeEngine, plan: Plan, options: TransferOptions, signal?: AbortSignal): Promise<EngineLoad> {
    const starting = EngineLoad.start(engine, plan, this.device, options);
    try {
      return await this.race(starting, signal);
    } catch (error) {
      void starting.then(
        (load) => load.end(),
        () => {}, // told by the race
      );
      throw error;
    }
  }

  /** finish() for a load whose memory somebody keeps, and ends. */
  keep(load: Load, startedMs: number): void {
    this.#note(load, startedMs);
    this.#loads.delete(load);
  }

  /** Takes a load's figures into the report and lets go of it. */
  finish(load: Load, startedMs: number): void {
    this.#note(load, startedMs);
    load.end();
    // A load that is not drained yet is close()'s to wait for.
    if (load.drained) this.#loads.delete(load);
  }

  #note(load: Load, startedMs: number): void {
    const seconds = (milliseconds() - startedMs) / 1000;
    const bytes = load.bytesLoaded;
    const report = this.#report;
    report.tensors = load.readyCount;
    report.bytes = bytes;
    report.seconds = seconds;
    report.bytesPerSecond = seconds > 0 ? bytes / seconds : 0;
    report.maxInFlight = load.maxInFlight;
    for (const opening of this.#engines.values())
      void opening.then((engine) => this.#noteFallbacks(native().takeFallbacks(engine))).catch(() => {});
    this.debug(
      `${counted(report.tensors, 'tensor')}, ${bytes} bytes in ${seconds.toFixed(3)} s, at most ${counted(report.maxInFlight, 'read')} in flight`,
    );
  }

  /** All into the report; a warning for those that this loader has not warned of. */
  #noteFallbacks(fallbacks: readonly Fallback[]): void {
    this.#report.fallbacks.push(...fallbacks);
    const news = fallbacks.filter(({ path, to }) => !this.#warnedOf.has(`${path}\0${to}`));
    if (news.length === 0) return;
    for (const { path, to } of news) this.#warnedOf.add(`${path}\0${to}`);
    const { path, from, to, reason } = news[0]!;
    const others = news.length > 1 ? ` (and ${counted(news.length - 1, 'more file')})` : '';
    this.#logger.warn(`fastsafetensors: ${path} falls back from '${from}' to '${to}': ${reason}${others}`);
  }

  meter(load: Load, onProgress?: (progress: Progress) => void): ProgressMeter | undefined {
    const callbacks = [onProgress ?? this.options.onProgress].filter((callback) => callback !== undefined);
    if (this.options.progress && (this.options.pg?.rank ?? 0) === 0) callbacks.push(progressBar());
    if (callbacks.length === 0) return undefined;
    return new ProgressMeter(load, (progress) => {
      for (const callback of callbacks) callback(progress);
    });
  }

  /** The promise's result, or at once the reason of an aborted signal, or CLOSED when the loader is closed meanwhile. */
  race<T>(promise: Promise<T>, signal?: AbortSignal, abandoned?: () => void): Promise<T> {
    const signals = [this.options.signal, signal, this.#closing.signal].filter((s) => s !== undefined);
    return unlessAborted(promise, signals, abandoned);
  }

  /** race() for what a framework makes of a tensor: nobody waits for an adapter that takes its time, and what it makes then is disposed. `borrowed`: the tensor, where it is not the adapter's. */
  adopted<T>(making: Promise<T>, borrowed?: DeviceTensor): Promise<T> {
    return this.race(making, undefined, () => disposeWhenMade(making, borrowed));
  }

  /** Ends every load, waits until nothing is in flight, at most stallTimeoutMs, and gives back slots and threads. A second call waits for the first. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#closing.abort(new FastSafetensorsError('CLOSED', `${this.#name} was closed while this was in progress`));
    const loads = [...this.#loads];
    for (const load of loads) load.end();
    for (const opened of [...this.#opened]) this.letGo(opened);
    const drained = (async () => {
      for (const opening of this.#engines.values()) {
        const engine = await opening.catch(() => undefined);
        if (engine) await native().closeEngine(engine);
      }
      for (const load of loads) {
        while (!load.drained) await load.wait();
      }
      await Promise.allSettled(this.#lettingGo);
    })();
    let stop = (): void => {};
    const late = new Promise<void>((resolve) => {
      stop = after(this.#stallTimeoutMs, () => {
        this.#logger.warn(
          `fastsafetensors: a read, or the closing of a file, has not come back ${this.#stallTimeoutMs} ms after close(); what it holds is kept until it does`,
        );
        resolve();
      });
    });
    await Promise.race([drained, late]);
    stop();
    this.#loads.clear();
  }

  #emptyReport(): LoadReport {
    return {
      copier: this.#copier,
      device: this.device.toString(),
      files: 0,
      tensors: 0,
      bytes: 0,
      seconds: 0,
      bytesPerSecond: 0,
      maxInFlight: 0,
      fallbacks: [],
    };
  }

  /** Bytes of staging that a load takes at most; 0 before prepare(), and for a copier of the user's own. */
  estimateStaging(): number {
    return this.#stagingBytes;
  }
}

/** What a user's logger throws is not to break a load. */
export function unfailing(logger: Logger): Logger {
  const guarded = (level: keyof Logger) => (message: string) => {
    try {
      logger[level](message);
    } catch {
      // There is nowhere to say so.
    }
  };
  return { debug: guarded('debug'), info: guarded('info'), warn: guarded('warn') };
}

function defined<T extends object>(object: T): Partial<T> {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as Partial<T>;
}
