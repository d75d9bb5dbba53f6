import { FastSafetensorsError } from '../base/errors.js';
import { after } from '../base/timers.js';
import type { Allocation } from '../device/allocation.js';
import type { Device } from '../device/device.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { native } from '../native/addon.js';
import { allHeld, type BudgetLimit, patience } from './budget-limit.js';
import type { Plan } from './plan.js';

/**
 * A plan that is being loaded. The bytes of a ready item are complete in its allocation. The load holds an allocation
 * until its last item was released, or until it ends; tensors hold it, too. What runs it is an engine's transfer
 * (EngineLoad) or a copier of the user's own (CopierLoad).
 */
export abstract class Load {
  readonly plan: Plan;
  readonly device: Device;
  readonly #allocations: (Allocation | null | undefined)[]; // undefined until taken, null when released
  readonly #itemsLeft: Uint32Array; // by allocation
  #ended = false;

  /** `itemsOfAllocations`: of the plan; the load changes it. */
  constructor(plan: Plan, device: Device, itemsOfAllocations: Uint32Array) {
    this.plan = plan;
    this.device = device;
    this.#allocations = new Array(plan.allocationSizes.length);
    this.#itemsLeft = itemsOfAllocations;
  }

  /** Items [0, readyPrefix) are ready. */
  abstract get readyPrefix(): number;
  abstract get readyCount(): number;
  abstract get bytesLoaded(): number;
  /** Bytes that were asked for: also of holes that are read along with short runs, and of edges of aligned blocks. */
  abstract get bytesRead(): number;
  /** The most reads (requests, for a copier of the user's own) that were in flight at a time. */
  abstract get maxInFlight(): number;
  /** True when nothing is in flight any more, after success or failure. */
  abstract get drained(): boolean;
  /** The first error. */
  abstract get error(): Error | null;
  /** Resolves when any of the above has changed. Does not keep the event loop alive: who waits does. */
  abstract changed(): Promise<void>;
  /** The budget that has no room for the next allocation, while nothing is in flight. */
  abstract get lacksRoom(): BudgetLimit | undefined;
  /** Items that became ready since the last call. Only for a load with collectReady. */
  abstract takeReady(): ArrayLike<number>;
  /** Raises the number of batches, from the first on, that may be loaded. */
  abstract setWindow(batches: number): void;
  /**
   * Starts nothing any more. Allocations that were not taken are freed when the last read and copy have ended. The
   * load's error becomes `reason`, or CLOSED.
   */
  abstract cancel(reason?: Error): void;
  /** The allocation of a ready item, retained for the caller. Called once for each; null after an error. */
  protected abstract takeAllocation(index: number): Allocation | null;

  /** By device, where there are several. */
  get parts(): readonly Load[] {
    return [this];
  }

  /** Bytes, of those of the plan, that are views of mapped files. */
  get mappedBytes(): number {
    return this.plan.mappedBytes;
  }

  /**
   * changed() for who waits for a tensor, and so disposes none meanwhile, unless something else of the consumer does so
   * soon: where a budget lacks room, and nothing is freed for a while, the load fails with BUDGET_INFEASIBLE.
   */
  wait(): Promise<void> {
    const changed = this.changed();
    return this.lacksRoom ? this.#whileAllIsHeld(changed) : changed;
  }

  async #whileAllIsHeld(changed: Promise<void>): Promise<void> {
    const heldNow = (): number | undefined => {
      const limit = this.lacksRoom;
      return limit && native().budgetHeld(limit.budget);
    };
    let held = heldNow();
    const look = (): void => {
      const limit = this.lacksRoom;
      const now = heldNow();
      if (limit && now === held) {
        this.cancel(allHeld(this.plan, this.readyPrefix, limit));
      } else {
        held = now;
        stop = after(patience.ms, look);
      }
    };
    let stop = after(patience.ms, look);
    await changed.finally(() => stop());
  }

  /** Resolves when every tensor is ready; rejects with the first error. Does not keep the event loop alive. */
  async complete(): Promise<void> {
    while (!this.drained || this.error) {
      if (this.error) throw this.error;
      await this.wait();
    }
  }

  /** The allocation of a ready item, which the load holds; null for an empty item. */
  allocationOf(item: number): Allocation | null {
    const index = this.plan.allocations[item]!;
    let allocation = this.#allocations[index];
    if (allocation === undefined) {
      allocation = this.plan.allocationSizes[index]! > 0 ? this.takeAllocation(index) : null;
      this.#allocations[index] = allocation;
    }
    if (allocation === null && this.plan.lengths[item]! > 0) {
      throw this.error ?? new FastSafetensorsError('CLOSED', 'the load has ended');
    }
    return allocation;
  }

  /** A tensor over a ready item. */
  tensor(item: number): DeviceTensor {
    const { plan } = this;
    const metadata = plan.metadataOf(item);
    const index = plan.tensors[item]!;
    const size = plan.sizes[item]!;
    const allocation = size > 0 ? this.allocationOf(item) : null;
    return new DeviceTensor(
      metadata.nameAt(index),
      plan.dtypeOf(item),
      plan.shapeOf(item),
      size,
      this.device,
      allocation,
      plan.destinations[item]!,
    );
  }

  /** Promises not to ask for this item again. With the last one of an allocation, only tensors hold it any more. */
  releaseItem(item: number): void {
    const index = this.plan.allocations[item]!;
    if (--this.#itemsLeft[index]! === 0 && !this.#ended) {
      this.#allocations[index]?.release();
      this.#allocations[index] = null;
    }
  }

  /** Cancels what is in flight and releases every allocation. A second call does nothing. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.cancel();
    for (const allocation of this.#allocations) allocation?.release();
    this.#allocations.fill(null);
  }
}
