import { Turns } from '../base/timers.js';
import type { CallWatch } from '../base/waiting.js';
import type { Device } from '../device/device.js';
import { type Plan, SLICE } from '../transfer/plan.js';
import type { DeviceEstimate, DeviceStreamEstimate, Estimate, StreamEstimate } from './estimate.js';
import type { Session } from './session.js';

/** How a stream is loaded: so many batches at a time, from that of the next tensor on, or the first with one left. */
export interface Streaming {
  readonly window: number;
  readonly inOrder: boolean;
}

/** Of a stream. As Session.estimate and Budget.limit. */
export async function ofStream(
  session: Session,
  plan: Plan,
  streaming: Streaming,
  watch: CallWatch,
): Promise<StreamEstimate> {
  const estimate = await session.estimate(plan, watch);
  const limits = await Promise.all(devicesOf(plan).map((device) => session.budgetOf(device)?.limit()));
  const streamed = await streamedBytes(plan, streaming);
  const parts = await partsOf(plan);
  return together(estimate, plan, (each, device) => {
    const most = limits[device]?.bytes ?? Number.POSITIVE_INFINITY;
    return { ...each, streamedBytes: Math.min(streamed[device]!, most), largestBytes: parts[device]!.largest };
  });
}

/** Of parts that are copied out of what a load has, each into an allocation of its own; whole tensors are there. */
export async function withCopies(whole: Estimate, parts: Plan): Promise<StreamEstimate> {
  const copies = await partsOf(parts);
  return together(whole, parts, ({ deviceBytes, stagingBytes }, device) => {
    const { tensors, copied, largestCopy, largest } = copies[device]!;
    const figures = { deviceBytes: deviceBytes + copied, streamedBytes: deviceBytes + largestCopy };
    return { ...figures, largestBytes: largest, stagingBytes, tensors };
  });
}

/** Undefined: the one that all go to. */
function devicesOf(plan: Plan): readonly (Device | undefined)[] {
  return plan.devices ?? [undefined];
}

/** By device of a plan: bytes of its largest item, and of those that are not all of their tensor. */
async function partsOf(plan: Plan) {
  const parts = devicesOf(plan).map(() => ({ tensors: 0, largest: 0, copied: 0, largestCopy: 0 }));
  const turns = new Turns();
  for (let item = 0; item < plan.count; ++item) {
    const ofDevice = parts[plan.allocationDevices?.[plan.allocations[item]!] ?? 0]!;
    const bytes = plan.sizes[item]!;
    ++ofDevice.tensors;
    ofDevice.largest = Math.max(ofDevice.largest, bytes);
    if (plan.parts?.[item]) {
      ofDevice.copied += bytes;
      ofDevice.largestCopy = Math.max(ofDevice.largestCopy, bytes);
    }
    if (turns.due()) await turns.take();
  }
  return parts;
}

/** `of`: what each device has, by its number in the plan. */
function together(
  estimate: Estimate,
  plan: Plan,
  of: (estimate: DeviceEstimate, device: number) => DeviceStreamEstimate,
): StreamEstimate {
  const { devices: given, ...sum } = estimate;
  if (!plan.devices || !given) return plan.devices ? { ...sum, streamedBytes: 0, largestBytes: 0 } : of(estimate, 0);
  const numbers = new Map(plan.devices.map((device, number) => [device.toString(), number]));
  const devices: Record<string, DeviceStreamEstimate> = {};
  const all = { deviceBytes: 0, streamedBytes: 0, largestBytes: 0, stagingBytes: sum.stagingBytes, tensors: 0 };
  for (const [name, each] of Object.entries(given)) {
    const own = of(each, numbers.get(name)!);
    devices[name] = own;
    all.deviceBytes += own.deviceBytes;
    all.streamedBytes += own.streamedBytes;
    all.largestBytes = Math.max(all.largestBytes, own.largestBytes);
    all.tensors += own.tensors;
  }
  return { ...all, devices };
}

/** By device of a plan: the most bytes of allocations that a stream holds at a time. */
async function streamedBytes(plan: Plan, { window, inOrder }: Streaming): Promise<number[]> {
  const turns = new Turns(1);
  const inSlices = async (count: number, each: (from: number, to: number) => void): Promise<void> => {
    for (let from = 0; from < count; from += SLICE) {
      each(from, Math.min(from + SLICE, count));
      if (turns.due()) await turns.take();
    }
  };
  const lastItems = new Uint32Array(plan.allocationSizes.length);
  await inSlices(plan.count, (from, to) => {
    for (let item = from; item < to; ++item) lastItems[plan.allocations[item]!] = item;
  });
  const held = new Held(plan);
  if (!inOrder) {
    await inSlices(plan.batchCount, (from, to) => {
      for (let batch = from; batch < to; ++batch) {
        held.make(batch + window);
        held.freeBatches(batch + 1);
      }
    });
    return held.most;
  }
  let batch = -1;
  await inSlices(plan.count, (from, to) => {
    for (let item = from; item < to; ++item) {
      if (plan.batchOf(item) > batch) {
        batch = plan.batchOf(item);
        held.make(batch + window);
      }
      const allocation = plan.allocations[item]!;
      if (lastItems[allocation] === item) held.free(allocation);
    }
  });
  return held.most;
}

/** Allocations that a load has made, and has not freed. */
class Held {
  /** By device: the most bytes until now. */
  readonly most: number[];
  readonly #plan: Plan;
  readonly #now: number[];
  readonly #order: Uint32Array; // allocations by batch
  readonly #ends: Uint32Array; // of batches, in `order`
  #made = 0; // of `order`
  #freed = 0;

  constructor(plan: Plan) {
    this.#plan = plan;
    this.#now = devicesOf(plan).map(() => 0);
    this.most = [...this.#now];
    const { allocationBatches, batchCount } = plan;
    const ends = new Uint32Array(batchCount);
    for (const batch of allocationBatches) ++ends[batch]!;
    for (let batch = 1; batch < batchCount; ++batch) ends[batch]! += ends[batch - 1]!;
    this.#ends = ends;
    this.#order = new Uint32Array(allocationBatches.length);
    const next = ends.slice();
    for (let i = allocationBatches.length - 1; i >= 0; --i) this.#order[--next[allocationBatches[i]!]!] = i;
  }

  /** Those of the first batches are made. */
  make(batches: number): void {
    for (const end = this.#endOf(batches); this.#made < end; ++this.#made) this.#add(this.#order[this.#made]!, 1);
    for (const [device, now] of this.#now.entries()) this.most[device] = Math.max(this.most[device]!, now);
  }

  /** Those of the first batches are freed. */
  freeBatches(batches: number): void {
    for (const end = this.#endOf(batches); this.#freed < end; ++this.#freed) this.free(this.#order[this.#freed]!);
  }

  free(allocation: number): void {
    this.#add(allocation, -1);
  }

  #endOf(batches: number): number {
    return this.#ends[Math.min(batches, this.#ends.length) - 1] ?? 0;
  }

  #add(allocation: number, sign: 1 | -1): void {
    const device = this.#plan.allocationDevices?.[allocation] ?? 0;
    this.#now[device]! += sign * this.#plan.allocationSizes[allocation]!;
  }
}
