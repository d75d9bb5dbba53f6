import type { Device } from '../device/device.js';
import { Memory } from '../device/memory.js';
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
   * `memory`: the plan's allocations where they exist; else the engine allocates. Rejects with what the engine says of
   * the plan; CLOSED when the engine is closed.
   */
  static async start(
    engine: NativeEngine,
    plan: Plan,
    device: Device,
    options: TransferOptions,
    memory?: readonly Memory[],
  ): Promise<EngineLoad> {
    const given = memory && { memory: memory.map(({ handle }) => handle) };
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

  protected takeMemory(allocation: number): Memory | null {
    const handle = native().takeAllocation(this.#handle, allocation);
    return handle && new Memory(handle, this.device, this.plan.allocationSizes[allocation]!).retain();
  }
}
