/** Reading a TensorProto, the message that holds one tensor of an ONNX model. */
import { dirname } from 'node:path';
import type { DTypeName } from '../../base/dtype.js';
import { FastSafetensorsError } from '../../base/errors.js';
import type { FileCalls } from '../../base/waiting.js';
import { stat } from '../../native/addon.js';
import { namedFile } from '../../safetensors/named-file.js';
import type { Message } from './protobuf.js';
import { bitsOfType, dtypeOf, ENTRY, EXTERNAL, nameOfType, TENSOR } from './schema.js';

/** What a TensorProto says of itself; TensorReader fetches its data. */
export interface TensorInfo {
  readonly name: string;
  /** TensorProto.DataType. */
  readonly dataType: number;
  /** Undefined for what safetensors cannot express. */
  readonly dtype: DTypeName | undefined;
  readonly shape: readonly number[];
  /** Bits of an element; undefined for strings and unknown types. */
  readonly bits: number | undefined;
  /** Bytes of the elements; 0 where `bits` is undefined. */
  readonly byteLength: number;
  /** Whether its data are in a file of their own. */
  readonly external: boolean;
}

/** Reads all but the data. `name`: that of a Constant, which has none. TENSOR_INVALID_INFO for a wrong shape. */
export function describeTensor(tensor: Message, path: string, name = tensor.string(TENSOR.name)): TensorInfo {
  const external = tensor.integer(TENSOR.dataLocation) === EXTERNAL;
  return describeType(name, tensor.integer(TENSOR.dataType) ?? 0, tensor.integers(TENSOR.dims), path, external);
}

/** What a type and a shape say of a tensor. TENSOR_INVALID_INFO for a wrong shape. `path`: the model's. */
export function describeType(
  name: string,
  dataType: number,
  shape: readonly number[],
  path: string,
  external = false,
): TensorInfo {
  const bits = bitsOfType(dataType);
  const allBits = shape.reduce((product, dim) => product * dim, bits ?? 0);
  const byteLength = Math.ceil(allBits / 8);
  if (shape.some((dim) => dim < 0 || !Number.isSafeInteger(dim)) || !Number.isSafeInteger(byteLength)) {
    const dimensions = 'expected dimensions of 0 or more, together below 2^53 bytes';
    throw invalid(path, name, `shape [${shape.join(', ')}] is impossible; ${dimensions}`);
  }
  const dtype = allBits % 8 === 0 ? dtypeOf(dataType) : undefined;
  return { name, dataType, dtype, shape, bits, byteLength, external };
}

/** How a tensor is stored in a .safetensors file: as it is, or its bytes as U8 under a name that says what they are. */
export function storedAs(info: TensorInfo, name: string): { name: string; dtype: DTypeName; shape: readonly number[] } {
  const { dtype, shape, dataType, byteLength } = info;
  if (dtype) return { name, dtype, shape };
  return { name: packedName(name, dataType), dtype: 'U8', shape: [byteLength] };
}

/** The name of a tensor whose type safetensors lacks: that of its type comes last. */
export function packedName(name: string, dataType: number): string {
  return `${name}.${nameOfType(dataType)}`;
}

/** Where external data are: bytes from the file's start. */
export interface ExternalPlace {
  readonly location: string;
  readonly offset: number;
  readonly length: number;
}

/** The place of external data, which are as long as the shape says where the model gives no length. */
export function externalPlace(tensor: Message, info: TensorInfo, path: string): ExternalPlace {
  const entries = new Map<string, string>();
  tensor.eachIn(TENSOR.externalData, (entry) => entries.set(entry.string(ENTRY.key), entry.string(ENTRY.value)));
  const location = entries.get('location');
  if (location === undefined) throw invalid(path, info.name, 'external data without a location');
  const number = (key: string, fallback: number) => {
    const text = entries.get(key);
    if (text === undefined) return fallback;
    const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
    if (Number.isSafeInteger(value)) return value;
    const found = `external data with ${key} ${JSON.stringify(text)}`;
    throw invalid(path, info.name, `${found}, expected a whole number below 2^53`);
  };
  return { location, offset: number('offset', 0), length: number('length', info.byteLength) };
}

/**
 * The file that a location names, links followed: a regular file. UNSAFE_SHARD_PATH for one whose name leads out of the
 * model's folder, and, with `followLinks` false, for a link that does; MISSING_SHARD when it does not exist.
 */
export async function resolveLocation(
  location: string,
  path: string,
  tensor: string,
  options: { followLinks?: boolean; calls?: FileCalls } = {},
): Promise<string> {
  const says = `${path}: tensor "${tensor}" has its data in ${JSON.stringify(location)}`;
  const { real } = await namedFile(location, dirname(path), { path, tensor, says }, options);
  if ((await stat(real, options.calls)).isFile()) return real;
  throw new FastSafetensorsError('UNSAFE_SHARD_PATH', `${says}, which is no regular file`, { path, tensor });
}

function invalid(path: string, tensor: string, what: string): FastSafetensorsError {
  return new FastSafetensorsError('TENSOR_INVALID_INFO', `${path}: tensor "${tensor}": ${what}`, { path, tensor });
}
