/** The elements that a TensorProto keeps in the model itself. */
import { FastSafetensorsError } from '../../base/errors.js';
import type { Message } from './protobuf.js';
import { nameOfType, TENSOR } from './schema.js';
import type { TensorInfo } from './tensor-proto.js';

const { floatData, doubleData, int32Data, int64Data, uint64Data } = TENSOR;

/** The field with the elements of each type where there is no raw_data (onnx.proto); int32_data for those left out. */
const FIELDS: Readonly<Record<number, number>> = {
  1: floatData,
  7: int64Data,
  11: doubleData,
  12: uint64Data,
  13: uint64Data,
  14: floatData, // complex: pairs
  15: doubleData,
};

/** What int32_data may hold for an element of each type; for those left out any 8 or 16 bits, as the type is wide. */
const RANGES: Readonly<Record<number, readonly [number, number]>> = {
  3: [-(2 ** 7), 2 ** 7 - 1],
  5: [-(2 ** 15), 2 ** 15 - 1],
  6: [-(2 ** 31), 2 ** 31 - 1],
  9: [0, 1],
};

/**
 * The elements as little-endian bytes: raw_data, a view of the model, or what the field of the type holds.
 * TENSOR_INVALID_INFO for a type without elements of a fixed size, and for integers that are none of it.
 */
export function inlineBytes(tensor: Message, info: TensorInfo, path: string): Uint8Array {
  if (tensor.has(TENSOR.rawData)) return tensor.bytes(TENSOR.rawData).at(-1)!;
  const { dataType, bits } = info;
  if (bits === undefined) throw invalid(path, info, `no raw_data for type ${dataType}`);
  const field = FIELDS[dataType] ?? int32Data;
  // Packed floats and doubles are little-endian on the wire already.
  if (field === floatData || field === doubleData) return tensor.joined(field);
  const words = tensor.words(field);
  const count = words.length / 2;
  if (field === int64Data || bits === 64) return new Uint8Array(words.buffer);
  const bytesEach = Math.max(bits, 8) / 8; // several elements of 4 and 2 bits are one integer
  const [least, most] = RANGES[dataType] ?? [bits < 8 ? -128 : 0, 2 ** (8 * bytesEach) - 1];
  const bytes = Buffer.alloc(count * bytesEach);
  for (let i = 0; i < count; ++i) {
    const low = words[2 * i]!;
    const value = (words[2 * i + 1]! | 0) * 2 ** 32 + low;
    if (value < least || value > most) {
      const name = field === int32Data ? 'int32_data' : 'uint64_data';
      throw invalid(path, info, `${name}[${i}] is ${value}, expected the bits of one ${nameOfType(dataType)}`);
    }
    if (bytesEach === 4) bytes.writeUInt32LE(low, 4 * i);
    else if (bytesEach === 2) bytes.writeUInt16LE(low & 0xffff, 2 * i);
    else bytes[i] = low;
  }
  return bytes;
}

function invalid(path: string, { name }: TensorInfo, what: string): FastSafetensorsError {
  const message = `${path}: tensor "${name}": ${what}`;
  return new FastSafetensorsError('TENSOR_INVALID_INFO', message, { path, tensor: name });
}
