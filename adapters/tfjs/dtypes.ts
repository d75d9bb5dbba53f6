/** What dtypes become in TensorFlow.js, and the conversion of those that it does not have. */
import { DTYPE_BITS, DTYPE_NAMES, type DTypeName } from '../../src/base/dtype.js';
import { FastSafetensorsError } from '../../src/base/errors.js';
import { Allocation } from '../../src/device/allocation.js';
import { DeviceTensor } from '../../src/device/device-tensor.js';
import { native, settled } from '../../src/native/addon.js';
import { tensorError } from '../tensor-error.js';

/** The dtypes of TensorFlow.js that tensors from files can have. */
export type TfDtype = 'float32' | 'int32' | 'bool' | 'complex64';

interface Rule {
  readonly dtype: TfDtype;
  /** Whether the stored elements are what TensorFlow.js wants. */
  readonly direct: boolean;
}

const DIRECT: Partial<Record<DTypeName, TfDtype>> = { F32: 'float32', I32: 'int32', BOOL: 'bool', C64: 'complex64' };
// Dtypes of less than a byte are left out: their scales are stored elsewhere.
const TO_FLOAT32 = ['F16', 'BF16', 'F64', 'F8_E4M3', 'F8_E5M2', 'F8_E8M0', 'F8_E4M3FNUZ', 'F8_E5M2FNUZ'];
const TO_INT32 = ['I8', 'U8', 'I16', 'U16', 'U32', 'I64', 'U64'];

/** What a tensor becomes. UNSUPPORTED_DTYPE, naming the tensor, where TensorFlow.js has no dtype for it. */
export function ruleOf(tensor: { readonly name: string; readonly dtype: DTypeName }): Rule {
  const dtype = DIRECT[tensor.dtype];
  if (dtype) return { dtype, direct: true };
  if (TO_FLOAT32.includes(tensor.dtype)) return { dtype: 'float32', direct: false };
  if (TO_INT32.includes(tensor.dtype)) return { dtype: 'int32', direct: false };
  const remedy = 'leave it out (filter) or load it without a framework and unpack it';
  const what = `is ${tensor.dtype}, which TensorFlow.js has no dtype for; ${remedy}`;
  throw tensorError('UNSUPPORTED_DTYPE', tensor, what);
}

/** Dequantization: value = stored * scale + min. */
export interface Affine {
  readonly scale: number;
  readonly min: number;
}

/**
 * A host tensor's elements as F32 or I32 in an allocation of their own, dequantized with `affine`; made off the event
 * loop. The tensor stays the caller's. UNSUPPORTED_DTYPE, naming the tensor, for a number that int32 cannot hold;
 * DEVICE_UNAVAILABLE for a CUDA tensor; CLOSED.
 */
export async function toTfDtype(tensor: DeviceTensor, to: 'float32' | 'int32', affine?: Affine): Promise<DeviceTensor> {
  const { name, dtype, shape, device } = tensor;
  const { allocation, offset } = tensor.placement;
  const as = to === 'int32' ? 'I32' : 'F32';
  if (!allocation) return new DeviceTensor(name, as, shape, 0, device, null, 0);
  const count = (tensor.byteLength * 8) / DTYPE_BITS[dtype];
  const how = { from: DTYPE_NAMES.indexOf(dtype), to, ...affine };
  const result = new Allocation(
    await settled(native().convertElements(allocation.handle, offset, count, how)).catch((error) => {
      throw named(error, tensor);
    }),
    device,
    4 * count,
  ).retain();
  try {
    return new DeviceTensor(name, as, shape, 4 * count, device, result, 0);
  } finally {
    result.release();
  }
}

/** The error of a conversion, with the tensor's name. */
function named(error: unknown, tensor: DeviceTensor): unknown {
  if (!(error instanceof FastSafetensorsError) || error.tensor !== undefined) return error;
  return tensorError(error.code, tensor, `(${tensor.dtype}): ${error.message}`);
}
