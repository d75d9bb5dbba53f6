import { canConvert, DTYPE_BITS, DTYPE_NAMES, type DTypeName, isFloating } from '../base/dtype.js';
import { FastSafetensorsError } from '../base/errors.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import type { Conversion, Items } from './items.js';

/** Gives items of a file the dtype that they have in memory. Whether one of them has another in the file. */
export function convertItems(
  { tensors, dtypes, stored, lengths, sizes }: Pick<Items, 'tensors' | 'dtypes' | 'stored' | 'lengths' | 'sizes'>,
  from: number,
  to: number,
  metadata: SafeTensorsMetadata,
  conversion: Conversion,
): boolean {
  let converts = false;
  for (let item = from; item < to; ++item) {
    const target = targetOf(metadata, tensors[item]!, conversion);
    if (target === stored[item]) continue;
    dtypes[item] = target;
    sizes[item] = sizeOf(lengths[item]!, stored[item]!, target);
    converts = true;
  }
  return converts;
}

/** The dtype in memory of a tensor, by its index. UNSUPPORTED_DTYPE when it can neither become `dtype` nor stay. */
export function convertedDtype(metadata: SafeTensorsMetadata, tensor: number, conversion: Conversion): DTypeName {
  return DTYPE_NAMES[targetOf(metadata, tensor, conversion)]!;
}

/** The number of the dtype that a tensor has in memory: integers, booleans and complex numbers stay as they are. */
function targetOf(metadata: SafeTensorsMetadata, tensor: number, { dtype, dtypePolicy }: Conversion): number {
  const stored = metadata.packed.dtypes[tensor]!;
  const from = DTYPE_NAMES[stored]!;
  if (dtype === undefined || from === dtype || !isFloating(from)) return stored;
  if (canConvert(from, dtype)) return DTYPE_NAMES.indexOf(dtype);
  if (dtypePolicy === 'convertible') return stored;
  const { path } = metadata;
  const name = metadata.nameAt(tensor);
  const message =
    `${path}: tensor "${name}" is ${from}, which cannot be converted to ${dtype} on the way; ` +
    "leave it out with filter, let it stay with dtypePolicy: 'convertible', or load without dtype";
  throw new FastSafetensorsError('UNSUPPORTED_DTYPE', message, { path, tensor: name });
}

/** The bytes in memory of `length` bytes in the file. */
function sizeOf(length: number, from: number, to: number): number {
  return from === to ? length : (length / DTYPE_BITS[DTYPE_NAMES[from]!]) * DTYPE_BITS[DTYPE_NAMES[to]!];
}
