import { FastSafetensorsError } from '../base/errors.js';
import { milliseconds } from '../base/timers.js';
import { type FileCalls, UNWATCHED } from '../base/waiting.js';
import { openUnified } from '../copiers/availability.js';
import type { CopierConstructor } from '../copiers/copier.js';
import type { EngineSpec, ResolvedSpec } from '../copiers/engine-spec.js';
import { wantsDirect } from '../copiers/nogds.js';
import { chooseCopier, copierAsked, headersKnownTo, insteadOf, isBuiltin, makeCopier } from '../copiers/registry.js';
import { loadThreeFsEarly } from '../copiers/three-fs.js';
import { type Device, openDevice } from '../device/device.js';
import { checked, native, settled } from '../native/addon.js';
import type {
  Fallback,
  NativeDevice,
  NativeEngine,
  NativeHeaderFdCache,
  NativePace,
  NativeReservation,
} from '../native/core.js';
import type { HeaderOf } from '../safetensors/names-of-no-file.js';
import type { Placement } from '../transfer/items.js';
import type { Plan } from '../transfer/plan.js';
import { Budget } from './budget.js';
import { checkDemands, type LoaderOptions } from './options.js';

/** An engine that can load certain files. */
export interface PreparedEngine {
  readonly engine: NativeEngine;
  /** The copier that it reads as. */
  readonly copier: string;
  readonly fallbacks: readonly Fallback[];
  /** It reads past the page cache, where hardly any of the files is. */
  readonly cold: boolean;
  /** Its staging lies where tensors do. */
  readonly stagesOnDevice: boolean;
  /** The device's number among those that the engine loads to. */
  readonly device: number;
}

/** What the devices of a loader share. */
export interface Shared {
  /** By how they read, and to which devices: GPUs share one. */
  readonly engines: Map<string, Promise<NativeEngine>>;
  /** Where there are several devices. */
  readonly placement: Placement | undefined;
  /** What all of them may read a second; null without a limit, undefined before the first engine. */
  pace?: NativePace | null;
}

/** Copiers that can read data through the descriptors that headers were read through. */
const REUSES_HEADER_FD: readonly string[] = ['auto', '3fs', 'nogds', 'unified'];

/** Bytes of a load from which on it is worth a look at the page cache. */
const DIRECT_FROM = 32 * 1024 * 1024;

/** The copier that reads, and what the one that was asked for lacks. */
interface Choice {
  readonly copier: string;
  readonly missing?: string;
}

/** Of how many files the mount is looked up before it is known which of them are read: ring and buffer wait for it. */
const MOST_RESOLVED_EARLY = 16;

interface ResolvedEarly {
  readonly files: readonly string[];
  readonly resolving: Promise<ResolvedSpec>;
}

/** Milliseconds for which a look at the page cache is good for further loads of its plan. */
const BELIEVED_MS = 1000;

/** How a loader's files are read: the copier, the engines that it runs on, the descriptors left from headers. */
export class Engines {
  readonly #options: LoaderOptions;
  readonly #device: Device;
  readonly #stallTimeoutMs: number;
  readonly #checkOpen: () => void;
  /** What all loads may hold together, where that has a limit. */
  readonly budget: Budget | undefined;
  readonly #shared: Shared;
  readonly #engines: Shared['engines']; // by reader: several only for files on several mounts
  readonly #placement: Placement | undefined;
  readonly #headerFds = new Set<NativeHeaderFdCache>();
  readonly #givingBack = new Set<Promise<void>>(); // off the event loop
  readonly #asked: string;
  #copier: string; // as asked for until prepare() chooses
  #choice: Promise<Choice> | undefined;
  #chosenEarly: { readonly files: readonly string[]; readonly choice: Promise<Choice> } | undefined;
  readonly #looked = new WeakMap<Plan, { readonly cold: boolean; readonly atMs: number }>(); // at the page cache
  #reservation: NativeReservation | undefined;
  #openedEarly: Promise<NativeDevice> | undefined;
  readonly #resolvedEarly = new WeakMap<FileCalls, ResolvedEarly>();
  #made: EngineSpec | CopierConstructor | undefined;

  /** `checkOpen` throws when the loader is closed: from then on nothing may be made that close() would miss. */
  constructor(options: LoaderOptions, device: Device, stallTimeoutMs: number, checkOpen: () => void, shared: Shared) {
    this.#shared = shared;
    this.#engines = shared.engines;
    this.#placement = shared.placement;
    this.#options = options;
    this.#device = device;
    this.#stallTimeoutMs = stallTimeoutMs;
    this.#checkOpen = checkOpen;
    const { deviceMemoryBudget, hostMemoryBudget } = options;
    const limited = deviceMemoryBudget !== undefined || hostMemoryBudget !== undefined;
    this.budget = limited ? new Budget(options, device, () => this.#others()) : undefined;
    this.#asked = copierAsked(options.copier ?? 'auto', options);
    this.#copier = this.#asked;
    if (this.#isThreeFs()) loadThreeFsEarly();
  }

  /** The name of the copier; 'auto' until files were looked at. */
  get copier(): string {
    return this.#copier;
  }

  /** For readShards. */
  get headerOf(): HeaderOf | undefined {
    return headersKnownTo(this.#options.copier ?? 'auto');
  }

  /**
   * Where files stay open between their headers and their data, until releaseHeaderFds() or close(). Undefined where
   * the copier opens files in its own way.
   */
  newHeaderFds(): NativeHeaderFdCache | undefined {
    if (!REUSES_HEADER_FD.includes(this.#asked) || !isBuiltin(this.#asked)) return undefined;
    if (this.#options.reader !== undefined || wantsDirect(this.#options) === true) return undefined;
    const fds = native().newHeaderFdCache();
    this.#headerFds.add(fds);
    return fds;
  }

  /** Closes those that no load has taken, off the event loop; close() waits for it. */
  releaseHeaderFds(fds: NativeHeaderFdCache | undefined): void {
    if (!fds || !this.#headerFds.delete(fds)) return;
    this.#giveBack(native().closeHeaderFdCache(fds));
  }

  #giveBack(givingBack: Promise<void>): void {
    this.#givingBack.add(givingBack);
    void givingBack.finally(() => this.#givingBack.delete(givingBack)).catch(() => {});
  }

  #releaseAllHeaderFds(): void {
    for (const fds of [...this.#headerFds]) this.releaseHeaderFds(fds);
  }

  /**
   * The engine for a plan's files, or the constructor of a copier of the user's own. DEVICE_UNAVAILABLE,
   * COPIER_UNAVAILABLE, NOT_3FS; UNSUPPORTED_DTYPE and INVALID_ARGUMENT for what this copier cannot do.
   */
  async prepare(plan: Plan, calls: FileCalls): Promise<PreparedEngine | CopierConstructor> {
    this.#checkOpen();
    const files = plan.paths;
    const early = this.#chosenEarly;
    this.#choice ??= early && areSame(files, early.files) ? early.choice : this.#choose(files);
    // Loads share it, and each waits by its own limits.
    const choosing = calls.call('the mount of', files[0] ?? 'no file', () => this.#choice!);
    const { copier: chosen, missing } = await choosing;
    this.#copier = chosen;
    this.#checkOpen();
    if (!REUSES_HEADER_FD.includes(chosen)) this.#releaseAllHeaderFds();
    this.#made ??= makeCopier(chosen, this.#device, { ...this.#options, copier: this.#asked });
    checkDemands(this.#options, this.#copier, typeof this.#made === 'function');
    if (typeof this.#made === 'function') {
      if (!plan.converts) return this.#made;
      const message =
        `copier "${this.#copier}" copies bytes as they are stored, and some tensors would have to be converted: ` +
        `load without dtype, or with copier: 'nogds'`;
      throw new FastSafetensorsError('UNSUPPORTED_DTYPE', message);
    }
    const { spec, copier, fallbacks } = this.#made.resolveForFiles
      ? await (this.#resolvedFor(files, calls) ?? this.#made.resolveForFiles(files, calls))
      : { spec: this.#made, copier: chosen, fallbacks: instead(files, this.#asked, chosen, missing) };
    this.#checkOpen();
    const converting = plan.converts ? spec.conversionFallback : undefined;
    const used = converting?.spec ?? spec;
    this.#openEarly(used);
    const cold = used.ifCold && (await this.#areCold(plan, calls)) ? used.ifCold : undefined;
    this.#checkOpen();
    if (cold) this.#releaseAllHeaderFds();
    if (used.reader.kind !== '3fs') this.dropReservation(this.#reservation);
    const stagesOnDevice = this.#stagesOnDevice(used);
    return {
      ...(await this.#engineFor(cold ? { ...used, reader: cold } : used)),
      copier: converting?.copier ?? copier,
      fallbacks: converting ? instead(files, copier, converting.copier, converting.reason) : fallbacks,
      cold: cold !== undefined,
      stagesOnDevice,
    };
  }

  /** Whether a plan's files are better read past the page cache. */
  async #areCold(plan: Plan, calls: FileCalls): Promise<boolean> {
    if (plan.bytes < DIRECT_FROM) return false;
    if (this.budget) return false; // it would have to hold the staging of two engines
    const looked = this.#looked.get(plan);
    if (looked && milliseconds() - looked.atMs < BELIEVED_MS) return looked.cold;
    const files = plan.headers;
    const ranges = await plan.rangesOfFiles();
    const areCold = () => settled(native().areCold(files, ranges));
    const cold = await calls.call('the pages of', files[0]!.path, areCold);
    this.#looked.set(plan, { cold, atMs: milliseconds() });
    return cold;
  }

  /**
   * Begins, before the files are known, what takes '3fs' milliseconds and needs none of them: pages for its buffer.
   * Undefined where nothing is to be given to dropReservation() afterwards.
   */
  reserveEarly(): NativeReservation | undefined {
    const spec = this.#threeFsSpec();
    // A budget may leave no room for a whole buffer.
    if (!spec || this.#placement || this.#engines.size > 0 || this.#reservation || this.budget) return undefined;
    this.#reservation = native().reserveThreeFs(this.#device.toString(), spec.reader);
    return this.#reservation;
  }

  /** Gives back what no engine has taken, off the event loop; close() waits for it. */
  dropReservation(reservation: NativeReservation | undefined): void {
    if (!reservation) return;
    if (this.#reservation === reservation) this.#reservation = undefined;
    this.#giveBack(native().dropReservation(reservation));
  }

  /** Begins to choose the copier while headers are read. Not for a GPU: files may be refused, and need none then. */
  chooseEarly(paths: readonly string[]): void {
    this.#checkOpen();
    if (this.#choice || this.#device.type !== 'cpu') return;
    this.#chosenEarly = { files: paths, choice: this.#choose(paths) };
    this.#chosenEarly.choice.catch(() => {}); // told where it is used
  }

  /**
   * Begins, while headers are read, what needs none of them: chooseEarly(), and what takes '3fs' milliseconds, mount,
   * ring and buffer. What goes wrong prepare() says.
   */
  prepareEarly(paths: readonly string[], calls: FileCalls): void {
    this.chooseEarly(paths);
    const made = this.#threeFsSpec();
    if (!made?.resolveForFiles || paths.length === 0 || this.#placement) return;
    const files = paths.length > MOST_RESOLVED_EARLY ? paths.slice(0, 1) : paths;
    const resolving = made.resolveForFiles(files, calls);
    this.#resolvedEarly.set(calls, { files, resolving });
    this.#openEarly(made);
    const begun = async (): Promise<void> => {
      const { spec, copier } = await resolving;
      this.#checkOpen();
      if (copier === '3fs') await this.#engineFor(spec, true);
    };
    begun().catch(() => {});
  }

  /** Begins to open the device that the first engine will want. */
  #openEarly({ near, unified }: EngineSpec): void {
    if (this.#engines.size > 0 || this.#openedEarly || unified || this.#placement) return;
    const opening = openDevice(this.#device, false, near);
    this.#openedEarly = opening;
    opening.catch(() => {
      if (this.#openedEarly === opening) this.#openedEarly = undefined; // told where it is used; else tried again
    });
  }

  /** What prepareEarly() has begun to find for just these files, within the limits of this load and of no other. */
  #resolvedFor(files: readonly string[], calls: FileCalls): Promise<ResolvedSpec> | undefined {
    const early = this.#resolvedEarly.get(calls);
    return early && areSame(files, early.files) ? early.resolving : undefined;
  }

  #isThreeFs(): boolean {
    return this.#asked === '3fs' && isBuiltin('3fs') && this.#options.reader === undefined;
  }

  /** Of the built-in copier '3fs', where that was asked for; undefined with options that it refuses: prepare() says. */
  #threeFsSpec(): EngineSpec | undefined {
    if (!this.#isThreeFs()) return undefined;
    try {
      this.#made ??= makeCopier('3fs', this.#device, { ...this.#options, copier: '3fs' });
    } catch {}
    return typeof this.#made === 'object' ? this.#made : undefined;
  }

  /** Never for files of a user's copier: that one was asked for by name. */
  async #choose(files: readonly string[]): Promise<Choice> {
    if (this.#asked === 'auto') return { copier: await chooseCopier(this.#device, files, this.#options, UNWATCHED) };
    // '3fs' looks at the files before it falls back: see resolveForFiles.
    if (this.#options.fallback !== 'nogds' || this.#asked === '3fs') return { copier: this.#asked };
    const other = await insteadOf(this.#asked, this.#device);
    return other ? { copier: other.copier, missing: other.reason } : { copier: this.#asked };
  }

  #stagesOnDevice({ reader }: EngineSpec): boolean {
    return this.#device.type === 'cpu' || reader.kind === 'gds';
  }

  /** Of which kinds the other devices are. */
  #others(): Set<Device['type']> {
    const others = (this.#placement?.devices ?? []).filter((other) => other.toString() !== this.#device.toString());
    return new Set(others.map(({ type }) => type));
  }

  /** The devices that an engine loads to: GPUs share one, unless reads go straight into their memory. */
  #group({ reader, unified }: EngineSpec): readonly Device[] {
    const { devices = [] } = this.#placement ?? {};
    if (this.#device.type === 'cpu' || reader.kind === 'gds' || unified) return [this.#device];
    const group = devices.filter(({ type }) => type === 'cuda');
    return group.length > 0 ? group : [this.#device];
  }

  async #engineFor(spec: EngineSpec, slotsAtOnce = false): Promise<{ engine: NativeEngine; device: number }> {
    const { near, unified } = spec;
    const group = this.#group(spec);
    const key = JSON.stringify([spec.reader, unified, group.map(String)]);
    let opening = this.#engines.get(key);
    if (!opening) {
      const rate = spec.engine.maxBytesPerSecond ?? Number.POSITIVE_INFINITY;
      this.#shared.pace ??= native().newPace(rate);
      const options = {
        ...spec.engine,
        pace: this.#shared.pace,
        stallTimeoutMs: spec.engine.stallTimeoutMs ?? this.#stallTimeoutMs,
        converts: this.#options.dtype !== undefined,
        slotsAtOnce,
      };
      const reader = spec.reader.kind === '3fs' ? { ...spec.reader, pages: this.#reservation } : spec.reader;
      const early = unified ? undefined : this.#openedEarly; // by a spec of this loader: all are `near`, or all not
      this.#openedEarly = undefined;
      const open = (device: Device) => (unified ? openUnified(device, near) : openDevice(device, false, near));
      const opened = Promise.all(early ? [early] : group.map(open));
      const limits = this.budget?.engineOptions(spec.engine.chunkBytes, this.#stagesOnDevice(spec));
      limits?.catch(() => {}); // told below, unless the device cannot be opened either
      opening = opened.then(async (devices) => {
        const limited = { ...options, ...(await limits) };
        return checked(() => native().createEngine(devices, reader, limited));
      });
      this.#engines.set(key, opening);
    }
    try {
      const names = group.map(String);
      return { engine: await opening, device: names.indexOf(this.#device.toString()) };
    } catch (error) {
      this.#engines.delete(key);
      throw error;
    }
  }

  /**
   * Prepares for a plan; the most bytes of staging that its load will take, 0 for a copier of the user's own. What goes
   * wrong is 0 as well: the load will say it.
   */
  async stagingBytes(plan: Plan, calls: FileCalls): Promise<{ engine?: NativeEngine; bytes: number }> {
    try {
      const prepared = await this.prepare(plan, calls);
      if (typeof prepared === 'function') return { bytes: 0 };
      const { engine } = prepared;
      return { engine, bytes: native().stagingBytes(engine, plan.converts || plan.hasRuns) };
    } catch {
      return { bytes: 0 };
    }
  }

  /** Calls `take` with the fallbacks that engines had since the last call. */
  takeFallbacks(take: (fallbacks: readonly Fallback[]) => void): void {
    for (const opening of this.#engines.values())
      void opening.then((engine) => take(native().takeFallbacks(engine))).catch(() => {});
  }

  /** Warnings of the core since the last call, of any loader of this process. */
  takeWarnings(): string[] {
    return this.#engines.size > 0 ? native().takeWarnings() : [];
  }

  /**
   * Resolves when no engine has anything in flight, and what was made before them is given back. Does not keep the
   * event loop alive.
   */
  async close(): Promise<void> {
    this.#openedEarly = undefined;
    this.dropReservation(this.#reservation);
    this.#releaseAllHeaderFds();
    const closing = [...this.#engines.values()].map(async (opening) => {
      const engine = await opening.catch(() => undefined);
      if (engine) await native().closeEngine(engine);
    });
    await Promise.all(closing);
    await Promise.allSettled(this.#givingBack);
  }
}

function areSame(some: readonly string[], others: readonly string[]): boolean {
  if (some.length !== others.length) return false;
  for (let i = 0; i < some.length; ++i) if (some[i] !== others[i]) return false;
  return true;
}

function instead(files: readonly string[], from: string, to: string, reason: string | undefined): Fallback[] {
  return reason === undefined ? [] : files.map((path) => ({ path, from, to, reason }));
}
