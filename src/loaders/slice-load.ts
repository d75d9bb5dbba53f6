import { milliseconds } from '../base/timers.js';
import { Allocation } from '../device/allocation.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { native, settled } from '../native/addon.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import { convertedDtype } from '../transfer/convert-items.js';
import type { Load } from '../transfer/load.js';
import { planSlice, type SlicePlan } from '../transfer/slice-plan.js';
import type { Session } from './session.js';

/** Pieces in memory at a time: the runs of one are copied out while others are read. */
const PIECES_AHEAD = 3;

/**
 * Reads one slice. Rejects with UNSUPPORTED_DTYPE for a dtype that it cannot become, and with what Session.begin and
 * loads reject with.
 */
export async function readSlice(
  session: Session,
  metadata: SafeTensorsMetadata,
  slice: TensorFrame,
): Promise<DeviceTensor> {
  const { name, shape } = slice;
  const device = session.deviceOf(metadata, metadata.indexOf(name));
  const { dtype: wanted, dtypePolicy } = session.options;
  const conversion = { dtype: wanted, dtypePolicy };
  if (slice.byteLength === 0) {
    const dtype = convertedDtype(metadata, metadata.indexOf(name), conversion);
    return new DeviceTensor(name, dtype, shape, 0, device, null, 0);
  }
  const sliced = await session.race(planSlice(metadata, slice, conversion));
  const { plan, dtype, byteLength } = sliced;
  const started = milliseconds();
  const load = await session.begin(plan, { window: PIECES_AHEAD, collectReady: false, device });
  try {
    if (sliced.copyOf) {
      return await Allocation.during(device, byteLength, async (allocation) => {
        await gather(session, load, sliced, allocation);
        return new DeviceTensor(name, dtype, shape, byteLength, device, allocation, 0);
      });
    }
    await session.race(load.complete());
    return new DeviceTensor(name, dtype, shape, byteLength, device, load.allocationOf(0), 0);
  } finally {
    session.finish(load, started);
  }
}

/** Copies the runs of each piece into the slice's memory as it arrives, off the event loop. */
async function gather(session: Session, load: Load, { plan, copyOf }: SlicePlan, slice: Allocation): Promise<void> {
  let item = 0;
  for (let index = 0; index < plan.allocationSizes.length; ++index) {
    let end = item;
    while (end < plan.count && plan.allocations[end] === index) ++end;
    while (load.readyPrefix < end) {
      session.check();
      if (load.error) throw load.error;
      await session.race(load.wait());
    }
    if (load.error) throw load.error;
    const piece = load.allocationOf(item)!.retain();
    try {
      await session.race(settled(native().copyAllocation(piece.handle, slice.handle, copyOf!(index))));
    } finally {
      piece.release();
    }
    for (; item < end; ++item) load.releaseItem(item);
    load.setWindow(index + 1 + PIECES_AHEAD);
  }
}
