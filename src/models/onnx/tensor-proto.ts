/** Reading a TensorProto, the message that holds one tensor of an ONNX model. */
import { stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { DTYPE_BITS, type DTypeName } from '../../base/dtype.js';
import { FastSafetensorsError } from '../../base/errors.js';
import { openRegularFile, readAt } from '../../base/regular-file.js';
import { namedFile } from '../../safetensors/named-file.js';
import type { Message } from './protobuf.js';
import { dtypeOf, ENTRY, EXTERNAL, TENSOR } from './schema.js';

/** What a TensorProto says of itself; readTensorBytes fetches its data. */
export interface TensorInfo {
  readonly name: string;
  /** TensorProto.DataType. */
  readonly dataType: number;
  /** Undefined for types that safetensors cannot express. */
  readonly dtype: DTypeName | undefined;
  readonly shape: readonly number[];
  /** Bytes of the elements; 0 where `dtype` is undefined. */
  readonly byteLength: number;
  /** Whether its data are in a file of their own. */
  readonly external: boolean;
}

/** Reads all but the data. `name`: that of a Constant, which has none. TENSOR_INVALID_INFO for a wrong shape. */
export function describeTensor(tensor: Message, path: string, name = tensor.string(TENSOR.name)): TensorInfo {
  const shape = tensor.integers(TENSOR.dims);
  const dataType = tensor.integer(TENSOR.dataType) ?? 0;
  const dtype = dtypeOf(dataType);
  const byteLength = dtype ? (shape.reduce((product, dim) => product * dim, 1) * DTYPE_BITS[dtype]) / 8 : 0;
  if (shape.some((dim) => dim < 0 || !Number.isSafeInteger(dim)) || !Number.isSafeInteger(byteLength)) {
    const dimensions = 'expected dimensions of 0 or more, together below 2^53 bytes';
    throw invalid(path, name, `shape [${shape.join(', ')}] is impossible; ${dimensions}`);
  }
  return { name, dataType, dtype, shape, byteLength, external: tensor.integer(TENSOR.dataLocation) === EXTERNAL };
}

/**
 * The elements as little-endian bytes, wherever the tensor keeps them: raw_data, float_data, double_data, int32_data
 * (16-bit and 8-bit floats), or an external file in the model's folder. Inline raw data are a view of the model, not a
 * copy. TENSOR_INVALID_INFO when they do not fill the shape; for external data also UNSAFE_SHARD_PATH, MISSING_SHARD,
 * UNEXPECTED_EOF and SHORT_READ.
 */
export async function readTensorBytes(tensor: Message, info: TensorInfo, path: string): Promise<Uint8Array> {
  const bytes = info.external ? await readExternal(tensor, info, path) : inlineBytes(tensor, info, path);
  if (bytes.length !== info.byteLength) {
    throw invalid(path, info.name, `${bytes.length} bytes of data, ${expected(info)}`);
  }
  return bytes;
}

/** The field that holds the data of this dtype where there is no raw_data; undefined where that is not read here. */
export function typedDataField(dtype: DTypeName): number | undefined {
  if (dtype === 'F32') return TENSOR.floatData;
  if (dtype === 'F64') return TENSOR.doubleData;
  if (dtype === 'F16' || dtype === 'BF16' || dtype.startsWith('F8_')) return TENSOR.int32Data;
  return undefined;
}

function inlineBytes(tensor: Message, info: TensorInfo, path: string): Uint8Array {
  if (tensor.has(TENSOR.rawData)) return tensor.bytes(TENSOR.rawData).at(-1)!;
  const field = info.dtype && typedDataField(info.dtype);
  if (field === undefined) throw invalid(path, info.name, `no raw_data for type ${info.dtype ?? info.dataType}`);
  // Packed floats and doubles are little-endian on the wire already.
  if (field !== TENSOR.int32Data) return tensor.joined(field);
  const values = tensor.integers(field);
  const wide = DTYPE_BITS[info.dtype!] === 16;
  const bytes = Buffer.alloc(values.length * (wide ? 2 : 1));
  for (const [index, value] of values.entries()) {
    if (value < 0 || value > (wide ? 0xffff : 0xff)) {
      throw invalid(path, info.name, `int32_data[${index}] is ${value}, expected the bits of one ${info.dtype}`);
    }
    if (wide) bytes.writeUInt16LE(value, index * 2);
    else bytes[index] = value;
  }
  return bytes;
}

/** Location, offset and length of external data. Without a length they are as long as the shape says. */
export function externalPlace(
  tensor: Message,
  info: TensorInfo,
  path: string,
): { location: string; offset: number; length: number } {
  const entries = new Map(
    tensor.children(TENSOR.externalData).map((entry) => [entry.string(ENTRY.key), entry.string(ENTRY.value)]),
  );
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
  options: { followLinks?: boolean } = {},
): Promise<string> {
  const says = `${path}: tensor "${tensor}" has its data in ${JSON.stringify(location)}`;
  const { real } = await namedFile(location, dirname(path), { path, tensor, says }, options);
  if ((await stat(real)).isFile()) return real;
  throw new FastSafetensorsError('UNSAFE_SHARD_PATH', `${says}, which is no regular file`, { path, tensor });
}

async function readExternal(tensor: Message, info: TensorInfo, path: string): Promise<Uint8Array> {
  const { location, offset, length } = externalPlace(tensor, info, path);
  if (info.dtype && length !== info.byteLength) {
    throw invalid(path, info.name, `external data of ${length} bytes, ${expected(info)}`);
  }
  const file = await resolveLocation(location, path, info.name);
  const handle = await openRegularFile(file);
  try {
    // Checked before the allocation: the length is only the model's claim.
    const { size } = await handle.stat();
    if (offset + length > size) {
      const message = `${file}: tensor "${info.name}" ends at byte ${offset + length}, but the file has ${size}`;
      throw new FastSafetensorsError('UNEXPECTED_EOF', message, { path: file, tensor: info.name, offset });
    }
    const bytes = Buffer.alloc(length);
    const found = await readAt(handle, bytes, offset);
    if (found === length) return bytes;
    const message = `${file}: the file ended at byte ${offset + found} while it was read`;
    throw new FastSafetensorsError('SHORT_READ', message, { path: file });
  } finally {
    await handle.close();
  }
}

function expected({ byteLength, dtype, shape }: TensorInfo): string {
  return `expected ${byteLength} for ${dtype} [${shape.join(', ')}]`;
}

function invalid(path: string, tensor: string, what: string): FastSafetensorsError {
  return new FastSafetensorsError('TENSOR_INVALID_INFO', `${path}: tensor "${tensor}": ${what}`, { path, tensor });
}
