import { DTYPE_BITS } from '../base/dtype.js';
import { keepExample } from '../base/examples.js';
import { held, Turns } from '../base/timers.js';
import { unlessAborted } from '../base/waiting.js';
import { Allocation } from '../device/allocation.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { native, settled } from '../native/addon.js';
import type { Arrival } from '../transfer/arrival.js';
import type { Load } from '../transfer/load.js';
import { type PartRange, partOf } from '../transfer/parts.js';
import type { Plan } from '../transfer/plan.js';

/** What is wanted of some tensors, by their items in TensorSource.plan: a part, null for all. */
export type WantedParts = ReadonlyMap<number, PartRange | null>;

/** Where a buffer's tensors come from. */
export interface TensorSource {
  /** Of all tensors there are, whole. */
  readonly plan: Plan;
  /** One of them; itself where it is there and the event loop needs no turn. */
  tensor(item: number, signal: AbortSignal): DeviceTensor | Promise<DeviceTensor>;
  /**
   * These, in the order of the plan. What is left of them when the caller wants no more is disposed. `together`: every
   * rank makes this call; where the group broadcasts, what it gets of others comes last.
   */
  parts(wanted: WantedParts, signal: AbortSignal, together?: boolean): AsyncGenerator<DeviceTensor, void, void>;
  /** Releases what it holds; tensors stay valid. */
  end(): void;
}

/** Tensors of a load: a complete one, or one whose `arrival` tells what is ready. */
export class LoadedTensors implements TensorSource {
  static {
    keepExample(new LoadedTensors({} as Load));
  }

  readonly #load: Load;
  readonly #arrival: Arrival | undefined;
  readonly #turns = new Turns(64);

  constructor(load: Load, arrival?: Arrival) {
    this.#load = load;
    this.#arrival = arrival;
  }

  get plan(): Plan {
    return this.#load.plan;
  }

  tensor(item: number, signal: AbortSignal): DeviceTensor | Promise<DeviceTensor> {
    const arriving = this.#arrival?.ready(item);
    if (arriving) return this.#after(held(unlessAborted(arriving, [signal])), item, signal);
    // A loop over tensors that are there gives the event loop none.
    if (this.#turns.due()) return this.#after(this.#turns.take(), item, signal);
    return this.#load.tensor(item);
  }

  async #after(event: Promise<unknown>, item: number, signal: AbortSignal): Promise<DeviceTensor> {
    await event;
    signal.throwIfAborted();
    return this.#load.tensor(item);
  }

  async *parts(wanted: WantedParts, signal: AbortSignal): AsyncGenerator<DeviceTensor, void, void> {
    for (const item of [...wanted.keys()].sort((a, b) => a - b)) {
      const tensor = await this.tensor(item, signal);
      const range = wanted.get(item)!;
      yield range ? await partOfTensor(this.plan, item, tensor, range) : tensor;
    }
  }

  end(): void {
    this.#load.end();
  }
}

/** A copy of a part of a loaded tensor; the tensor itself where that is all of it, else it is disposed. */
async function partOfTensor(plan: Plan, item: number, whole: DeviceTensor, range: PartRange): Promise<DeviceTensor> {
  const metadata = plan.metadataOf(item);
  try {
    const frame = metadata.frameAt(plan.tensors[item]!);
    const part = partOf(frame, metadata.dataStart, range);
    if (!part) return whole;
    const { name, dtype, device } = whole;
    const { shape, length, fileOffset, run, stride } = part;
    // Dtypes smaller than a byte are not converted.
    const inMemory = (bytes: number): number =>
      dtype === frame.dtype ? bytes : (bytes / DTYPE_BITS[frame.dtype]) * DTYPE_BITS[dtype];
    const byteLength = inMemory(length);
    const source = whole.placement;
    const copy =
      byteLength === 0 || !source.allocation
        ? new DeviceTensor(name, dtype, shape, 0, device, null, 0)
        : await Allocation.during(device, byteLength, async (allocation) => {
            const [each, apart] = [inMemory(run || length), inMemory(stride)];
            const begin = source.offset + inMemory(fileOffset - plan.offsets[item]!);
            const runs = Float64Array.of(each, begin, 0, byteLength / each, apart, each);
            await settled(native().copyAllocation(source.allocation!.handle, allocation.handle, runs));
            return new DeviceTensor(name, dtype, shape, byteLength, device, allocation, 0);
          });
    whole.dispose();
    return copy;
  } catch (error) {
    whole.dispose();
    throw error;
  }
}
