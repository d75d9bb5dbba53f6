import { setMaxListeners } from 'node:events';
import { isPromise } from 'node:util/types';
import { digestsOf } from '../base/digest.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { after, within } from '../base/timers.js';
import { StallWatch, UNWATCHED } from '../base/waiting.js';
import { Allocation } from '../device/allocation.js';
import { type Device, openDevice } from '../device/device.js';
import { native, settled } from '../native/addon.js';
import type { TransferOptions } from '../native/core.js';
import { checkUnchanged } from '../safetensors/file-identity.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { mismatch } from '../safetensors/sums.js';
import type { BudgetLimit } from '../transfer/budget-limit.js';
import { Load } from '../transfer/load.js';
import type { Plan } from '../transfer/plan.js';
import type { Copier, CopierConstructor, CopyRange } from './copier.js';
import { AllocationDestination } from './destination.js';
import type { Pace } from './pace.js';

export interface CopierLoadOptions extends TransferOptions {
  readonly stallTimeoutMs: number;
  /** Of the loader: its loads share it. */
  readonly pace: Pace;
  /** Of its memory. */
  readonly limit?: BudgetLimit;
}

/** How often a load looks whether its budget has room again: milliseconds. */
const LOOK_FOR_ROOM_MS = 5;

/** The most requests in flight at a time, over all copiers of a load. */
const MAX_REQUESTS = 64;

/**
 * A load that a copier of the user's own carries out: the loader plans, allocates and checks, the copier copies ranges.
 * One request for each file and allocation, or several where a pace cuts them or there are very many ranges.
 */
export class CopierLoad extends Load {
  readonly #make: CopierConstructor;
  readonly #collectReady: boolean;
  readonly #abort = new AbortController();
  readonly #allocations: (Allocation | undefined)[] = [];
  readonly #done: Uint8Array; // by item
  readonly #itemsLeft: Uint32Array; // by allocation
  readonly #taken: Uint8Array; // by allocation
  readonly #copiers = new Map<number, Copier>(); // by file
  readonly #watch: StallWatch;
  readonly #stallTimeoutMs: number;
  readonly #pace: Pace;
  readonly #limit: BudgetLimit | undefined;
  #window: number;
  #ready: number[] = [];
  readyPrefix = 0;
  readyCount = 0;
  bytesLoaded = 0;
  bytesRead = 0;
  #inFlight = 0;
  readonly #pending = new Set<Promise<void>>(); // requests in flight, and those that wait for their pace
  maxInFlight = 0;
  drained = false;
  error: Error | null = null;
  #waiting: (() => void)[] = [];
  #news = false;
  #roomless = false; // the next allocation waits for room in the budget

  constructor(
    make: CopierConstructor,
    plan: Plan,
    itemsOfAllocations: Uint32Array,
    device: Device,
    options: CopierLoadOptions,
  ) {
    super(plan, device, itemsOfAllocations);
    this.#make = make;
    this.#collectReady = options.collectReady ?? false;
    this.#window = options.window ?? Number.POSITIVE_INFINITY;
    this.#done = new Uint8Array(plan.count);
    this.#itemsLeft = itemsOfAllocations.slice();
    this.#taken = new Uint8Array(plan.allocationSizes.length);
    setMaxListeners(0, this.#abort.signal); // copiers may add one for each request
    this.#stallTimeoutMs = options.stallTimeoutMs;
    this.#pace = options.pace;
    this.#limit = options.limit;
    this.#watch = new StallWatch(this.#stallTimeoutMs, () => {
      const requests = `a copier has ${this.#inFlight} requests in hand`;
      this.#fail(this.#stalled(`${requests}: none of them has ended, and nothing was written for them`));
    });
    const stopTimer = after(options.timeoutMs ?? Number.POSITIVE_INFINITY, () => {
      const message = `the load was not complete in time: ${this.#arrived()}; raise timeoutMs`;
      this.#fail(new FastSafetensorsError('TIMEOUT', message));
    });
    void this.#run()
      .catch((error) => this.#fail(error))
      .then(() => this.#finish())
      .finally(stopTimer);
  }

  async changed(): Promise<void> {
    if (!this.#news) await this.#told();
    this.#news = false;
  }

  get lacksRoom(): BudgetLimit | undefined {
    return this.#roomless && this.#pending.size === 0 ? this.#limit : undefined;
  }

  takeReady(): ArrayLike<number> {
    const ready = this.#ready;
    this.#ready = [];
    return ready;
  }

  setWindow(batches: number): void {
    this.#window = batches;
    this.#tell();
  }

  cancel(reason?: Error): void {
    this.#fail(reason ?? new FastSafetensorsError('CLOSED', 'the load was cancelled'));
  }

  protected takeAllocation(index: number): Allocation | null {
    const allocation = this.#allocations[index];
    if (this.error || !allocation) return null;
    allocation.retain();
    this.#taken[index] = 1;
    if (this.#itemsLeft[index] === 0) this.#release(index);
    return allocation;
  }

  async #run(): Promise<void> {
    const { plan } = this;
    const pending = this.#pending;
    await this.#checkAvailable();
    try {
      for (let item = 0; item < plan.count && !this.error; ) {
        while (plan.batchOf(item) >= this.#window && !this.error) await this.#told();
        while (pending.size >= MAX_REQUESTS && !this.error) await Promise.race(pending);
        if (this.error) break;
        const first = item;
        const file = plan.files[item]!;
        const index = plan.allocations[item]!;
        while (item < plan.count && plan.files[item] === file && plan.allocations[item] === index) ++item;
        const allocation = await this.#allocate(index);
        const request = this.#request(first, item, allocation)
          .catch((error) => this.#fail(error))
          .finally(() => {
            pending.delete(request);
            if (this.#roomless) this.#tell();
          });
        pending.add(request);
      }
    } finally {
      await Promise.all(pending);
    }
  }

  /** Fails early where what the window allows at once cannot be allocated. */
  async #checkAvailable(): Promise<void> {
    const { allocationSizes, allocationBatches } = this.plan;
    let bytes = 0;
    for (let i = 0; i < allocationSizes.length && allocationBatches[i]! < this.#window; ++i)
      bytes += allocationSizes[i]!;
    const left = this.#limit ? Math.max(this.#limit.bytes - native().budgetHeld(this.#limit.budget), 0) : bytes;
    await settled(native().checkAvailable(await openDevice(this.device), Math.min(bytes, left)));
  }

  async #allocate(index: number): Promise<Allocation | null> {
    const size = this.plan.allocationSizes[index]!;
    if (size === 0) return null;
    this.#allocations[index] ??= this.#limit
      ? await this.#allocateWithin(this.#limit, size)
      : await Allocation.allocate(this.device, size);
    return this.#allocations[index] ?? null;
  }

  /** When the budget has room for it; undefined where the load has ended before. */
  async #allocateWithin(limit: BudgetLimit, size: number): Promise<Allocation | undefined> {
    try {
      while (!this.error) {
        const allocation = await Allocation.within(limit.budget, this.device, size);
        if (allocation) return allocation;
        if (!this.#roomless) {
          this.#roomless = true;
          this.#tell();
        }
        await new Promise<void>((resolve) => void after(LOOK_FOR_ROOM_MS, resolve));
      }
    } finally {
      this.#roomless = false;
    }
    return undefined;
  }

  /** Loads items [first, end), which are of one file and lie in one allocation. */
  async #request(first: number, end: number, allocation: Allocation | null): Promise<void> {
    const { plan } = this;
    const metadata = plan.metadataOf(first);
    if (allocation) {
      allocation.retain(); // until no copier can write to it
      try {
        for (const piece of this.#pace.pieces(this.#ranges(first, end))) {
          const bytes = piece.reduce((sum, { length }) => sum + length, 0);
          await this.#pace.wait(bytes, this.#abort.signal);
          this.bytesRead += bytes;
          await this.#copyChecked(plan.files[first]!, metadata, piece, allocation);
          if (this.error) return;
          this.bytesLoaded += bytes;
          this.#tell();
        }
        if (plan.digests) await this.#checkDigests(first, end, allocation);
      } finally {
        allocation.release();
      }
    }
    if (this.error) return;
    for (let item = first; item < end; ++item) {
      this.#done[item] = 1;
      if (this.#collectReady) this.#ready.push(item);
    }
    this.readyCount += end - first;
    const index = plan.allocations[first]!;
    this.#itemsLeft[index]! -= end - first;
    if (this.#itemsLeft[index] === 0 && this.#taken[index]) this.#release(index);
    while (this.readyPrefix < plan.count && this.#done[this.readyPrefix]) ++this.readyPrefix;
    this.#tell();
  }

  /** CHECKSUM_MISMATCH for items whose bytes, where they have arrived, have another digest than they must. */
  async #checkDigests(first: number, end: number, allocation: Allocation): Promise<void> {
    const { plan } = this;
    const known = plan.digests!;
    const items: number[] = [];
    for (let item = first; item < end; ++item) if (known.kinds[item] && plan.lengths[item]! > 0) items.push(item);
    if (items.length === 0) return;
    const places = Float64Array.from(items.flatMap((item) => [plan.destinations[item]!, plan.lengths[item]!]));
    const { kinds, digests } = digestsOf(known, items);
    const result = await settled(native().checkDigests(allocation.handle, places, kinds, digests));
    if (result.wrong < 0) return;
    const item = items[result.wrong]!;
    throw mismatch(plan.metadataOf(item), plan.tensors[item]!, result);
  }

  /** Made as they are needed: a part of a tensor may be very many short runs. */
  *#ranges(first: number, end: number): Generator<CopyRange, void, void> {
    const { lengths, offsets, destinations, parts } = this.plan;
    for (let item = first; item < end; ++item) {
      const length = lengths[item]!;
      const part = parts?.[item];
      const run = part?.run || length;
      for (let done = 0, behind = 0; done < length; done += run, behind += part?.stride ?? 0)
        yield { fileOffset: offsets[item]! + behind, length: run, destOffset: destinations[item]! + done };
    }
  }

  /** One request, #copy(), with FILE_CHANGED unless the file is the same before and after it. */
  async #copyChecked(
    file: number,
    metadata: SafeTensorsMetadata,
    ranges: CopyRange[],
    allocation: Allocation,
  ): Promise<void> {
    if (this.error) return;
    this.maxInFlight = Math.max(this.maxInFlight, ++this.#inFlight);
    this.#watch.enter();
    try {
      await checkUnchanged(metadata.path, metadata.identity, UNWATCHED);
      if (this.error) return;
      await this.#copy(this.#copier(file, metadata), metadata, ranges, allocation);
      await checkUnchanged(metadata.path, metadata.identity, UNWATCHED);
    } finally {
      --this.#inFlight;
      this.#watch.leave();
    }
  }

  /** Resolves when every byte of the ranges is in place and the copier can write to none of them any more. */
  async #copy(
    copier: Copier,
    metadata: SafeTensorsMetadata,
    ranges: CopyRange[],
    allocation: Allocation,
  ): Promise<void> {
    const { path } = metadata;
    const destination = new AllocationDestination(allocation, ranges, () => this.#watch.progress());
    let failed: { readonly error: unknown } | undefined;
    try {
      const given = ranges.map((range) => ({ ...range })); // the copier may change them
      const pending = copier.submitIo({ path, ranges: given, destination, signal: this.#abort.signal });
      if (isPromise(pending)) {
        // A waitIo() that does not wait for it would leave the rejection to the process.
        pending.catch((error) => {
          failed = { error };
        });
      }
      await copier.waitIo(pending);
    } finally {
      await destination.close();
    }
    if (this.error) return;
    if (destination.unnoticed) throw destination.unnoticed.error;
    for (const range of ranges) {
      const missing = destination.firstMissing(range);
      if (missing === undefined) continue;
      if (failed) throw failed.error;
      const offset = range.fileOffset + missing - range.destOffset;
      const tensor = this.plan.tensorAt(path, offset);
      const message =
        `${path}: the copier ended a request without byte ${offset} of the file, of tensor "${tensor}": ` +
        `expected ${range.length} bytes from ${range.fileOffset} on through destination.write`;
      throw new FastSafetensorsError('SHORT_READ', message, { path, tensor, offset });
    }
  }

  #copier(file: number, metadata: SafeTensorsMetadata): Copier {
    let copier = this.#copiers.get(file);
    if (!copier) {
      copier = checkCopier(this.#make(metadata, this.device), metadata.path);
      this.#copiers.set(file, copier);
    }
    return copier;
  }

  #fail(error: unknown): void {
    if (this.error || this.drained) return;
    this.error =
      error instanceof Error
        ? error
        : new FastSafetensorsError('IO_ERROR', `a copier threw ${String(error)}`, { cause: error });
    this.#watch.end();
    this.#abort.abort(this.error);
    this.#tell();
  }

  async #finish(): Promise<void> {
    await Promise.all([...this.#copiers.values()].map((copier) => this.#close(copier)));
    this.drained = true;
    if (this.error) this.#releaseAll();
    this.#tell();
  }

  /** No request is in flight any more. A copier that does not close in time is abandoned. */
  async #close(copier: Copier): Promise<void> {
    try {
      const inTime = await within(this.#stallTimeoutMs, Promise.resolve(copier.close()));
      if (!inTime) throw this.#stalled('a copier has not closed');
    } catch (error) {
      this.#fail(error);
    }
  }

  #stalled(what: string): FastSafetensorsError {
    const advice = 'raise stallTimeoutMs where that is no fault';
    const message = `${what} for ${this.#stallTimeoutMs} ms; ${this.#arrived()}; ${advice}`;
    return new FastSafetensorsError('STALLED', message);
  }

  #arrived(): string {
    return `${this.bytesLoaded} of ${this.plan.bytes} bytes had arrived`;
  }

  override end(): void {
    super.end();
    // Otherwise requests are in flight: #finish() releases.
    if (this.drained) this.#releaseAll();
  }

  #release(index: number): void {
    this.#allocations[index]?.release();
    this.#allocations[index] = undefined;
  }

  #releaseAll(): void {
    for (let i = 0; i < this.#allocations.length; ++i) this.#release(i);
  }

  #tell(): void {
    this.#news = true;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  #told(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }
}

const COPIER_METHODS = ['submitIo', 'waitIo', 'close'] as const;

function checkCopier(copier: Copier, path: string): Copier {
  const object = typeof copier === 'object' || typeof copier === 'function' ? copier : null;
  const missing = COPIER_METHODS.filter((method) => typeof object?.[method] !== 'function');
  if (object && missing.length === 0) return copier;
  const found = object ? `one without ${missing.join(', ')}` : copier === null ? 'null' : typeof copier;
  const expected = `expected an object with ${COPIER_METHODS.join(', ')}`;
  throw new InvalidArgumentError(`the copier that was made for ${path}: ${expected}, found ${found}`);
}
