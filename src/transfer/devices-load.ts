import type { Allocation } from '../device/allocation.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import type { BudgetLimit } from './budget-limit.js';
import { Load } from './load.js';
import type { Plan } from './plan.js';

/** A load of one device, and by item of it the item of the whole. */
export interface LoadOfDevice {
  readonly load: Load;
  readonly items: Uint32Array;
}

/**
 * Loads of several devices as one: items and batches are those of the plan of all. Each device loads by itself, as far
 * ahead as the window lets it. An error of one ends all.
 */
export class DevicesLoad extends Load {
  readonly #parts: readonly LoadOfDevice[];
  readonly #collectsReady: boolean;
  readonly #owner: Uint16Array; // by item: its part
  readonly #place: Uint32Array; // by item: that in the part
  readonly #waiting: (Promise<void> | undefined)[]; // by part: its change, which those who waited before share
  readonly #itemsBefore: (Uint32Array | undefined)[] = []; // by part: how many items batches before one have
  #window: number;
  #news = false; // since somebody has waited
  #prefix = 0;
  #error: Error | null = null;

  /** No part is empty; together they have every item once. `window`: the batches that they may load. */
  constructor(plan: Plan, parts: readonly LoadOfDevice[], window: number, collectsReady: boolean) {
    super(plan, parts[0]!.load.device, new Uint32Array(0)); // each part has those of its own
    this.#parts = parts;
    this.#window = window;
    this.#collectsReady = collectsReady;
    this.#owner = new Uint16Array(plan.count);
    this.#place = new Uint32Array(plan.count);
    this.#waiting = parts.map(() => undefined);
    for (const [part, { items }] of parts.entries()) {
      for (let i = 0; i < items.length; ++i) {
        this.#owner[items[i]!] = part;
        this.#place[items[i]!] = i;
      }
    }
  }

  override get parts(): readonly Load[] {
    return this.#parts.map(({ load }) => load);
  }

  get readyPrefix(): number {
    const ready = this.#parts.map(({ load }) => load.readyPrefix);
    while (this.#prefix < this.plan.count && this.#place[this.#prefix]! < ready[this.#owner[this.#prefix]!]!)
      ++this.#prefix;
    return this.#prefix;
  }
  get readyCount(): number {
    return this.#sum((load) => load.readyCount);
  }
  get bytesLoaded(): number {
    return this.#sum((load) => load.bytesLoaded);
  }
  get bytesRead(): number {
    return this.#sum((load) => load.bytesRead);
  }
  override get mappedBytes(): number {
    return this.#sum((load) => load.mappedBytes);
  }
  /** An engine counts the reads of all devices that it loads. */
  get maxInFlight(): number {
    return Math.max(...this.#parts.map(({ load }) => load.maxInFlight));
  }
  get drained(): boolean {
    return this.#parts.every(({ load }) => load.drained);
  }

  get error(): Error | null {
    if (this.#error) return this.#error;
    for (const { load } of this.#parts) {
      if (!load.error) continue;
      this.cancel(load.error);
      break;
    }
    return this.#error;
  }

  #sum(figure: (load: Load) => number): number {
    return this.#parts.reduce((sum, { load }) => sum + figure(load), 0);
  }

  async changed(): Promise<void> {
    if (!this.#news) {
      const changes = this.#parts.map(({ load }, part) => {
        this.#waiting[part] ??= load.changed().finally(() => {
          this.#waiting[part] = undefined;
          this.#news = true;
        });
        return this.#waiting[part];
      });
      await Promise.race(changes);
    }
    this.#news = false;
  }

  override async complete(): Promise<void> {
    await super.complete();
    await Promise.all(this.parts.map((load) => load.complete())); // which then watch nothing any more
  }

  /**
   * In the order of items, that of the device of the next one: others may well wait until theirs are asked for. As they
   * arrive, where no device has anything else to do.
   */
  get lacksRoom(): BudgetLimit | undefined {
    const { readyPrefix } = this;
    if (readyPrefix === this.plan.count) return undefined;
    const next = this.#parts[this.#owner[readyPrefix]!]!.load.lacksRoom;
    if (!this.#collectsReady) return next;
    const rests = (part: number): boolean => {
      const { load } = this.#parts[part]!;
      return load.drained || load.lacksRoom !== undefined || load.readyCount >= this.#itemsInWindow(part);
    };
    return next && this.#parts.every((_, part) => rests(part)) ? next : undefined;
  }

  /** How many items a part may load until the window moves on. */
  #itemsInWindow(part: number): number {
    const { batchCount } = this.plan;
    let before = this.#itemsBefore[part];
    if (!before) {
      before = new Uint32Array(batchCount + 1);
      for (const item of this.#parts[part]!.items) ++before[this.plan.batchOf(item) + 1]!;
      for (let batch = 0; batch < batchCount; ++batch) before[batch + 1]! += before[batch]!;
      this.#itemsBefore[part] = before;
    }
    return before[Math.min(this.#window, batchCount)]!;
  }

  takeReady(): ArrayLike<number> {
    const ready: number[] = [];
    for (const { load, items } of this.#parts) {
      const taken = load.takeReady();
      for (let i = 0; i < taken.length; ++i) ready.push(items[taken[i]!]!);
    }
    return ready;
  }

  setWindow(batches: number): void {
    this.#window = batches;
    for (const { load } of this.#parts) load.setWindow(batches);
  }

  cancel(reason?: Error): void {
    if (reason) this.#error ??= reason;
    for (const { load } of this.#parts) load.cancel(reason);
  }

  override allocationOf(item: number): Allocation | null {
    return this.#partOf(item).allocationOf(this.#place[item]!);
  }

  override tensor(item: number): DeviceTensor {
    return this.#partOf(item).tensor(this.#place[item]!);
  }

  override releaseItem(item: number): void {
    this.#partOf(item).releaseItem(this.#place[item]!);
  }

  override end(): void {
    for (const { load } of this.#parts) load.end();
    super.end();
  }

  #partOf(item: number): Load {
    return this.#parts[this.#owner[item]!]!.load;
  }

  protected takeAllocation(): null {
    return null; // those of its parts are theirs
  }
}
