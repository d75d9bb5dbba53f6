import { Turns } from '../base/timers.js';
import { type Plan, SLICE } from '../transfer/plan.js';

/** What a load will take of one device, and of the host to read for it. */
export interface DeviceEstimate {
  /** Of tensors, with padding, as if nothing were mapped. */
  deviceBytes: number;
  /**
   * Of streams (ParallelLoader, shardedPlan): of `deviceBytes` the most at a time, where each tensor is disposed before
   * the next one is asked for.
   */
  streamedBytes?: number;
  /** At most. GPUs that share a reader share its staging: each has all of it here. */
  stagingBytes: number;
  tensors: number;
}

/** What a load will take, together and by device. */
export interface Estimate extends DeviceEstimate {
  /** Bytes of all devices' tensors. */
  deviceBytes: number;
  /** Of all devices; each may have its most at another time. */
  streamedBytes?: number;
  /** What devices share counts once. */
  stagingBytes: number;
  /** By name ('cuda:0'), where there may be several. */
  devices?: Record<string, DeviceEstimate>;
}

/** How a stream is loaded: so many batches at a time, from that of the next tensor on, or the first with one left. */
export interface Streaming {
  readonly window: number;
  readonly inOrder: boolean;
}

/** Of parts that are copied out of what a load has, each in an allocation of its own; whole tensors are there. */
export function withCopies(whole: Estimate, parts: Plan): Estimate {
  const add = (estimate: DeviceEstimate, device?: number): DeviceEstimate => {
    let [tensors, bytes, most] = [0, 0, 0];
    for (let item = 0; item < parts.count; ++item) {
      if (device !== undefined && parts.allocationDevices![parts.allocations[item]!] !== device) continue;
      ++tensors;
      const copied = parts.parts?.[item] ? parts.sizes[item]! : 0;
      bytes += copied;
      most = Math.max(most, copied);
    }
    const { deviceBytes } = estimate;
    return { ...estimate, deviceBytes: deviceBytes + bytes, streamedBytes: deviceBytes + most, tensors };
  };
  if (!whole.devices) return add(whole);
  const names = parts.devices!.map(String);
  const devices = Object.entries(whole.devices).map(([name, each]) => [name, add(each, names.indexOf(name))] as const);
  const streamedBytes = devices.reduce((sum, [, each]) => sum + each.streamedBytes!, 0);
  return { ...add(whole), streamedBytes, devices: Object.fromEntries(devices) };
}

/** By device of a plan: the most bytes of allocations that a stream holds at a time. */
export async function streamedBytes(plan: Plan, { window, inOrder }: Streaming): Promise<number[]> {
  const held = new Held(plan);
  if (!inOrder) {
    for (let batch = 0; batch < plan.batchCount; ++batch) held.moveOn(batch, window, true);
    return held.most;
  }
  const turns = new Turns(1);
  const lastItems = new Uint32Array(plan.allocationSizes.length);
  const inSlices = async (each: (from: number, to: number) => void): Promise<void> => {
    for (let from = 0; from < plan.count; from += SLICE) {
      each(from, Math.min(from + SLICE, plan.count));
      if (turns.due()) await turns.take();
    }
  };
  await inSlices((from, to) => {
    for (let item = from; item < to; ++item) lastItems[plan.allocations[item]!] = item;
  });
  let batch = -1;
  await inSlices((from, to) => {
    for (let item = from; item < to; ++item) {
      while (batch < plan.batchOf(item)) held.moveOn(++batch, window, false);
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
  readonly #ofBatches: readonly number[][];

  constructor(plan: Plan) {
    this.#plan = plan;
    this.#now = new Array<number>(plan.devices?.length ?? 1).fill(0);
    this.most = [...this.#now];
    this.#ofBatches = Array.from({ length: plan.batchCount }, () => []);
    for (const [allocation, batch] of plan.allocationBatches.entries()) this.#ofBatches[batch]!.push(allocation);
  }

  /** The first tensor of a batch is asked for: so many batches from it on are made. `frees`: it is taken whole then. */
  moveOn(batch: number, window: number, frees: boolean): void {
    for (let made = batch === 0 ? 0 : batch + window - 1; made < batch + window; ++made)
      for (const allocation of this.#ofBatches[made] ?? []) this.#add(allocation, 1);
    this.most.forEach((most, device) => {
      this.most[device] = Math.max(most, this.#now[device]!);
    });
    if (frees) for (const allocation of this.#ofBatches[batch]!) this.free(allocation);
  }

  free(allocation: number): void {
    this.#add(allocation, -1);
  }

  #add(allocation: number, sign: 1 | -1): void {
    const device = this.#plan.allocationDevices?.[allocation] ?? 0;
    this.#now[device]! += sign * this.#plan.allocationSizes[allocation]!;
  }
}
