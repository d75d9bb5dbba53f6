import { FastSafetensorsError } from '../base/errors.js';
import { keepExample } from '../base/examples.js';
import { after, afterRunning, milliseconds } from '../base/timers.js';
import type { Limits } from '../base/waiting.js';
import { Allocation } from '../device/allocation.js';
import { Device } from '../device/device.js';
import { native, statusError, translated } from '../native/addon.js';
import type { NativeLoad as Handle, NativeEngine, TransferOptions } from '../native/core.js';
import type { BudgetLimit } from './budget-limit.js';
import { Load } from './load.js';
import type { Plan } from './plan.js';

/** The I/O thread has so long to say TIMEOUT itself: it knows when a deadline has passed while this process slept. */
const GRACE_MS = 500;
/**
 * V8 hears so late of the memory of a load that has not ended by then, as it may have been dropped, and reads nothing;
 * else so long later. It collects when it hears of more, 5 to 20 ms of a small heap while tensors are handed out, of
 * which most are disposed soon.
 */
const TOLD_AFTER_MS = 1000;

const unwatchDropped = new FinalizationRegistry<() => void>((unwatch) => unwatch());

/** A load that an engine of the core runs, as one transfer. */
export class EngineLoad extends Load {
  static {
    const plan = { allocationSizes: new Float64Array() } as Plan;
    keepExample(new EngineLoad({} as NativeEngine, {} as Handle, plan, new Uint32Array(), Device.parse('cpu')));
  }

  readonly #engine: NativeEngine;
  readonly #handle: Handle;
  readonly #limit: BudgetLimit | undefined; // of its memory
  readonly #state = new Float64Array(8); // see pollTransfer
  #error: Error | null = null;
  #unwatch = (): void => {};
  #untell = (): void => {};

  private constructor(
    engine: NativeEngine,
    handle: Handle,
    plan: Plan,
    itemsOfAllocations: Uint32Array,
    device: Device,
    limit?: BudgetLimit,
  ) {
    super(plan, device, itemsOfAllocations);
    this.#limit = limit;
    this.#engine = engine;
    this.#handle = handle;
  }

  /**
   * Does not keep the event loop alive. `allocations`: those of the plan where they exist; else the engine allocates.
   * Rejects with what the engine says of the plan; CLOSED when the engine is closed.
   */
  static async start(
    engine: NativeEngine,
    plan: Plan,
    device: Device,
    options: TransferOptions & { stallTimeoutMs: number; limit?: BudgetLimit },
    allocations?: readonly Allocation[],
  ): Promise<EngineLoad> {
    const given = allocations && { memory: allocations.map(({ handle }) => handle) };
    const budget = options.limit?.budget;
    const [handle, items] = await Promise.all([
      translated(native().startTransfer(engine, { ...plan.toNative(), ...given }, { ...options, budget })),
      plan.itemsOfAllocations(),
    ]);
    const load = new EngineLoad(engine, handle, plan, items, device, options.limit);
    load.#watchThread(options);
    load.#tellLater();
    return load;
  }

  /**
   * Limits are the I/O thread's to tell, unless it hangs itself: in a ring of 3FS whose daemon was stopped. Weak: a
   * timer must not keep a load that was dropped.
   */
  #watchThread({ stallTimeoutMs, timeoutMs = Number.POSITIVE_INFINITY }: Limits & { stallTimeoutMs: number }): void {
    const weak = new WeakRef(this);
    let turn = 0;
    let since = 0;
    const busySince = (): number => {
      const load = weak.deref();
      if (!load) return since;
      const now = native().engineTurn(load.#engine);
      if (now !== turn || now % 2 === 0) since = milliseconds();
      turn = now;
      return since;
    };
    const stalled = (): void => {
      const what = `the thread that loads it has not come back for ${stallTimeoutMs} ms (stallTimeoutMs)`;
      const load = weak.deref();
      if (load) load.#fail('STALLED', `${what}, for memory or for a ring of 3FS`, 'is its store still there?');
    };
    const late = (): void => {
      const what = 'the load was not complete in time, and the thread that loads it hangs';
      const load = weak.deref();
      if (load) load.#fail('TIMEOUT', what, 'raise timeoutMs');
    };
    const stops = [afterRunning(stallTimeoutMs, stalled, busySince), after(timeoutMs + GRACE_MS, late)];
    this.#unwatch = () => {
      for (const stop of stops) stop();
    };
    unwatchDropped.register(this, this.#unwatch);
  }

  #tellLater(): void {
    const weak = new WeakRef(this);
    this.#untell = after(TOLD_AFTER_MS, () => {
      const load = weak.deref();
      if (load && !native().tellMemory(load.#handle)) load.#tellLater();
    });
  }

  #fail(code: 'STALLED' | 'TIMEOUT', what: string, advice: string): void {
    if (this.error || this.drained) return;
    const arrived = `${this.bytesLoaded} of ${this.plan.bytes} bytes had arrived`;
    const [path] = this.plan.paths;
    this.cancel(new FastSafetensorsError(code, `${path}: ${what}; ${arrived}; ${advice}`, { path }));
  }

  override async complete(): Promise<void> {
    await super.complete();
    this.#unwatch();
  }

  override end(): void {
    this.#unwatch();
    this.#untell();
    super.end();
  }

  #poll(): Float64Array {
    native().pollTransfer(this.#handle, this.#state);
    return this.#state;
  }

  get readyPrefix(): number {
    return this.#poll()[0]!;
  }
  get readyCount(): number {
    return this.#poll()[1]!;
  }
  get bytesLoaded(): number {
    return this.#poll()[2]!;
  }
  get bytesRead(): number {
    return this.#poll()[6]!;
  }
  get maxInFlight(): number {
    return this.#poll()[3]!;
  }
  get drained(): boolean {
    return this.#poll()[4] === 1;
  }
  get error(): Error | null {
    if (!this.#error && this.#poll()[5] === 1) {
      const status = native().transferError(this.#handle);
      if (status?.path !== undefined && status.offset !== undefined)
        status.tensor ??= this.plan.tensorAt(status.path, status.offset);
      if (status?.code === 'CHECKSUM_MISMATCH' && status.message.startsWith(`${status.path}: `))
        status.message = `${status.path}: tensor "${status.tensor}"${status.message.slice(status.path!.length)}`;
      this.#error = status && statusError(status);
    }
    return this.#error;
  }

  changed(): Promise<void> {
    return native().waitTransfer(this.#handle);
  }

  get lacksRoom(): BudgetLimit | undefined {
    return this.#limit && this.#poll()[7]! > 0 ? this.#limit : undefined;
  }

  takeReady(): ArrayLike<number> {
    return native().takeReady(this.#handle);
  }

  setWindow(batches: number): void {
    native().setWindow(this.#engine, this.#handle, batches);
  }

  cancel(reason?: Error): void {
    if (reason) this.#error ??= reason;
    native().cancelTransfer(this.#engine, this.#handle);
  }

  protected takeAllocation(index: number): Allocation | null {
    const handle = native().takeAllocation(this.#handle, index);
    return handle && new Allocation(handle, this.device, this.plan.allocationSizes[index]!).retain();
  }
}
