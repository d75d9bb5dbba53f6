import { FastSafetensorsError } from '../base/errors.js';
import type { Device } from '../device/device.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { Memory } from '../device/memory.js';
import { native, settled, statusError } from '../native/addon.js';
import type { NativeLoad as Handle, NativeEngine } from '../native/core.js';
import type { Plan } from './plan.js';

export interface LoadOptions {
  /** Batches that may be loaded; setWindow() raises it. */
  readonly window: number;
  /** takeReady() is used: tensors in the order in which they arrive. */
  readonly collectReady: boolean;
  readonly timeoutMs?: number;
  /** For copiers of the user's own; an engine knows it. */
  readonly stallTimeoutMs?: number;
}

/** A plan being carried out. What is ready is complete in device memory; memory is held until its last tensor was passed or the load ends. */
export abstract class Load {
  readonly plan: Plan;
  readonly device: Device;
  readonly #memories: (Memory | null | undefined)[];
  readonly #itemsLeft: Uint32Array; // by allocation
  #ended = false;

  constructor(plan: Plan, device: Device) {
    this.plan = plan;
    this.device = device;
    this.#memories = new Array(plan.allocationSizes.length);
    this.#itemsLeft = new Uint32Array(plan.allocationSizes.length);
    for (let item = 0; item < plan.count; ++item) ++this.#itemsLeft[plan.allocations[item]!]!;
  }

  /** Items [0, readyPrefix) are complete. */
  abstract get readyPrefix(): number;
  abstract get readyCount(): number;
  abstract get bytesLoaded(): number;
  /** Reads in flight at a time, at most so far. */
  abstract get maxInFlight(): number;
  /** Nothing is in flight any more. */
  abstract get drained(): boolean;
  /** The first error. */
  abstract get error(): Error | null;
  /** Resolves when something has changed; keeps the event loop alive until then. */
  abstract wait(): Promise<void>;
  /** Items that became ready since the last call. */
  abstract takeReady(): ArrayLike<number>;
  abstract setWindow(batches: number): void;
  /**
   * Ends the load: nothing is started any more, memory that was not taken goes when the last read and copy have been reaped. Its error is
   * `reason`, CLOSED without one.
   */
  abstract cancel(reason?: Error): void;
  /** The memory of an allocation with a ready item, retained for the caller; asked for once. Null after an error. */
  protected abstract takeMemory(allocation: number): Memory | null;

  /** Resolves when every tensor is ready; rejects with the first error. */
  async complete(): Promise<void> {
    while (!this.drained || this.error) {
      if (this.error) throw this.error;
      await this.wait();
    }
  }

  /** The memory of a ready item; null for an empty one. */
  memoryOf(item: number): Memory | null {
    const allocation = this.plan.allocations[item]!;
    let memory = this.#memories[allocation];
    if (memory === undefined) {
      memory = this.plan.allocationSizes[allocation]! > 0 ? this.takeMemory(allocation) : null;
      this.#memories[allocation] = memory;
    }
    if (memory === null && this.plan.lengths[item]! > 0) {
      throw this.error ?? new FastSafetensorsError('CLOSED', 'the load has ended');
    }
    return memory;
  }

  /** A tensor over a ready item. */
  tensor(item: number): DeviceTensor {
    const { plan } = this;
    const { metadata } = plan.inputs[plan.files[item]!]!;
    const index = plan.tensors[item]!;
    const size = plan.sizes[item]!;
    const memory = size > 0 ? this.memoryOf(item) : null;
    return new DeviceTensor(
      metadata.nameAt(index),
      plan.dtypeOf(item),
      metadata.shapeAt(index),
      size,
      this.device,
      memory,
      plan.destinations[item]!,
    );
  }

  /** Says that this item will not be asked for again: with the last one of its allocation, only tensors hold the memory. */
  releaseItem(item: number): void {
    const allocation = this.plan.allocations[item]!;
    if (--this.#itemsLeft[allocation]! === 0 && !this.#ended) {
      this.#memories[allocation]?.release();
      this.#memories[allocation] = null;
    }
  }

  /** Lets go of all memory that no tensor holds. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.cancel();
    for (const memory of this.#memories) memory?.release();
    this.#memories.fill(null);
  }
}

/** A load by the core's engine. */
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

  /** Rejects with what the engine says of the plan; CLOSED when it is closed. */
  static async start(engine: NativeEngine, plan: Plan, device: Device, options: LoadOptions): Promise<EngineLoad> {
    const handle = await settled(native().startTransfer(engine, plan.toNative(), options));
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
