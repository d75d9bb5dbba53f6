import { digestsOf } from '../base/digest.js';
import { Turns } from '../base/timers.js';
import type { Device } from '../device/device.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { Plan, packedItems } from './plan.js';

/** What one device has of a plan for several. */
export interface PlanOfDevice {
  readonly device: Device;
  readonly plan: Plan;
  /** By item of it: the item of the whole plan. */
  readonly items: Uint32Array;
}

/** What each device has of a plan for several, without those that have nothing. */
export async function byDevice(whole: Plan): Promise<PlanOfDevice[]> {
  const { devices = [], allocationDevices = new Uint16Array() } = whole;
  const turns = new Turns();
  const found: PlanOfDevice[] = [];
  for (const [number, device] of devices.entries()) {
    const numbers = new Map<number, number>(); // by allocation of the whole
    for (let i = 0; i < allocationDevices.length; ++i)
      if (allocationDevices[i] === number) numbers.set(i, numbers.size);
    if (numbers.size === 0) continue;
    const items: number[] = [];
    for (let item = 0; item < whole.count; ++item) {
      if (allocationDevices[whole.allocations[item]!] === number) items.push(item);
      if (turns.due()) await turns.take();
    }
    found.push({ device, plan: await planOf(whole, items, numbers, turns), items: Uint32Array.from(items) });
  }
  return found;
}

/** These items, whose allocations become those of these numbers. */
async function planOf(
  whole: Plan,
  items: readonly number[],
  numbers: ReadonlyMap<number, number>,
  turns: Turns,
): Promise<Plan> {
  const packed = packedItems(items.length);
  const files: { readonly metadata: SafeTensorsMetadata; readonly tensors: number[] }[] = [];
  let converts = false;
  let file = -1; // of the whole, the last one
  for (const [i, item] of items.entries()) {
    const metadata = whole.metadataOf(item);
    const tensor = whole.tensors[item]!;
    if (whole.files[item] !== file) files.push({ metadata, tensors: [] });
    file = whole.files[item]!;
    files.at(-1)!.tensors.push(tensor);
    packed.tensors[i] = tensor;
    packed.dtypes[i] = whole.dtypes[item]!;
    packed.stored[i] = whole.stored[item]!;
    packed.files[i] = files.length - 1;
    packed.allocations[i] = numbers.get(whole.allocations[item]!)!;
    packed.offsets[i] = whole.offsets[item]!;
    packed.lengths[i] = whole.lengths[item]!;
    packed.sizes[i] = whole.sizes[item]!;
    packed.destinations[i] = whole.destinations[item]!;
    converts ||= packed.stored[i] !== packed.dtypes[i];
    if (turns.due()) await turns.take();
  }
  const kept = [...numbers.keys()];
  const made = {
    ...packed,
    ...(whole.parts && { parts: items.map((item) => whole.parts![item]!) }),
    inputs: files.map(({ metadata, tensors }) => ({ metadata, selection: Uint32Array.from(tensors) })),
    converts,
    apart: true,
    allocationSizes: Float64Array.from(kept, (allocation) => whole.allocationSizes[allocation]!),
    allocationBatches: Uint32Array.from(kept, (allocation) => whole.allocationBatches[allocation]!),
  };
  const plan = Plan.ofItems(made, whole.mappable);
  if (whole.digests) plan.digests = digestsOf(whole.digests, items);
  return plan;
}
