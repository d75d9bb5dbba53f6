import { canConvert, DTYPE_BITS, DTYPE_NAMES, type DTypeName, isFloating } from '../base/dtype.js';
import { FastSafetensorsError } from '../base/errors.js';
import { native, settled } from '../native/addon.js';
import { Allocation } from './allocation.js';
import { Device } from './device.js';
import { DeviceTensor } from './device-tensor.js';

/** Bytes that pass through the host at a time, because an ArrayBuffer has a limit. */
const PIECE = 256 * 1024 * 1024;

/** A copy of a tensor on a device. The tensor stays the caller's. OUT_OF_…_MEMORY, DEVICE_UNAVAILABLE, CLOSED. */
export async function copyToDevice(tensor: DeviceTensor, device: Device): Promise<DeviceTensor> {
  const { name, dtype, shape, byteLength } = tensor;
  if (byteLength === 0) return new DeviceTensor(name, dtype, shape, 0, device, null, 0);
  return Allocation.during(device, byteLength, async (allocation) => {
    for (let offset = 0; offset < byteLength; offset += PIECE) {
      const bytes = await tensor.toHost({ offset, length: Math.min(PIECE, byteLength - offset) });
      await allocation.write(offset, bytes);
    }
    return new DeviceTensor(name, dtype, shape, byteLength, device, allocation, 0);
  });
}

/**
 * A tensor as `dtype` on a device, as a load with these options would give it: integers, booleans and complex numbers
 * keep their dtype. The tensor itself where it is so already; else a copy in an allocation of its own, and the tensor
 * is disposed, also after an error. UNSUPPORTED_DTYPE for a floating tensor that cannot become `dtype`; as
 * copyToDevice().
 */
export async function tensorAs(
  tensor: DeviceTensor,
  { dtype = tensor.dtype, device = tensor.device }: { dtype?: DTypeName; device?: Device },
): Promise<DeviceTensor> {
  const converts = isFloating(tensor.dtype) && dtype !== tensor.dtype;
  if (!converts && device.toString() === tensor.device.toString()) return tensor;
  try {
    if (!converts) return await copyToDevice(tensor, device);
    if (!canConvert(tensor.dtype, dtype)) {
      const message = `tensor "${tensor.name}" is ${tensor.dtype}, which cannot become ${dtype}; get it without dtype`;
      throw new FastSafetensorsError('UNSUPPORTED_DTYPE', message, { tensor: tensor.name });
    }
    // Conversion is the host's: the elements of a GPU pass through its memory.
    using host = tensor.device.type === 'cpu' ? tensor : await copyToDevice(tensor, Device.parse('cpu'));
    const converted = await convert(host, dtype);
    if (device.type === 'cpu') return converted;
    using _ = converted;
    return await copyToDevice(converted, device);
  } finally {
    tensor.dispose();
  }
}

async function convert(tensor: DeviceTensor, dtype: DTypeName): Promise<DeviceTensor> {
  const { name, shape, device } = tensor;
  const { allocation, offset } = tensor.placement;
  if (!allocation) return new DeviceTensor(name, dtype, shape, 0, device, null, 0);
  const count = (tensor.byteLength * 8) / DTYPE_BITS[tensor.dtype];
  const [from, to] = [DTYPE_NAMES.indexOf(tensor.dtype), DTYPE_NAMES.indexOf(dtype)];
  const handle = await settled(native().convertFloats(allocation.handle, offset, count, from, to));
  const byteLength = (count * DTYPE_BITS[dtype]) / 8;
  const result = new Allocation(handle, device, byteLength).retain();
  try {
    return new DeviceTensor(name, dtype, shape, byteLength, device, result, 0);
  } finally {
    result.release();
  }
}
