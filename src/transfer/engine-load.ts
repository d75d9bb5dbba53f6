import { Allocation } from '../device/allocation.js';
import type { Device } from '../device/device.js';
import { native, settled, statusError } from '../native/addon.js';
import type { NativeLoad as Handle, NativeEngine, TransferOptions } from '../native/core.js';
import { Load } from './load.js';
import type { Plan } from './plan.js';

/** A load that an engine of the core runs, as one transfer. */
export class EngineLoad extends Load {
  readonly #engine: NativeEngine;
  readonly #handle: Handle;
  readonly #state = new Float64Array(6); // see pollTransfer
  #error: Error | null = null;

  private constructor(engine: NativeEngine, handle: Handle, plan: Plan, device: Device) {
    super(plan, device);
    this.#engine = engine;
    this.#handle = handle;
  }

  /**
   * `allocations`: those of the plan where they exist; else the engine allocates. Rejects with what the engine says of
   * the plan; CLOSED when the engine is closed.
   */
  static async start(
    engine: NativeEngine,
    plan: Plan,
    device: Device,
    options: TransferOptions,
    allocations?: readonly Allocation[],
  ): Promise<EngineLoad> {
    const given = allocations && { memory: allocations.map(({ handle }) => handle) };
    const handle = await settled(native().startTransfer(engine, { ...plan.toNative(), ...given }, options));
    return new EngineLoad(engine, handle, plan, device);
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
      this.#error = status && statusError(status);
    }
    return this.#error;
  }

  wait(): Promise<void> {
    return settled(native().waitTransfer(this.#handle));
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
