import { noise } from './noise.js';
import { bitsOfType } from './schema.js';

/** Bits of exponent and mantissa and the exponent's bias of floats below 32 bits, by TensorProto.DataType. */
const FLOATS: Readonly<Record<number, readonly [exponent: number, mantissa: number, bias: number]>> = {
  10: [5, 10, 15],
  16: [8, 7, 127],
  17: [4, 3, 7],
  18: [4, 3, 8],
  19: [5, 2, 15],
  20: [5, 2, 16],
};
const F32 = 1;
const F64 = 11;
/** Types of which no element is random: complex numbers, and those whose numbers differ between runtimes. */
const NONE = new Set([14, 15, 24, 25, 26]);

/**
 * Random elements as little-endian bytes: floats between -1 and 1, integers and booleans of 0 and 1, so that they can
 * be indices. The same in every run. Undefined for types without any.
 */
export function randomElements(dataType: number, count: number): Uint8Array<ArrayBuffer> | undefined {
  const bits = bitsOfType(dataType);
  if (bits === undefined || NONE.has(dataType)) return undefined;
  const values = noise(count);
  if (dataType === F32) return new Uint8Array(values.buffer);
  if (dataType === F64) return new Uint8Array(Float64Array.from(values).buffer);
  const bytes = new Uint8Array(Math.ceil((count * bits) / 8));
  if (bits < 8) {
    for (let i = 0; i < count; ++i) if (values[i]! >= 0) bytes[i >> 1]! |= i % 2 === 0 ? 0x01 : 0x10;
    return bytes;
  }
  const layout = FLOATS[dataType];
  const words = new Uint32Array(values.buffer);
  for (let i = 0; i < count; ++i) {
    const element = layout ? narrowed(words[i]!, ...layout) : Number(values[i]! >= 0);
    bytes[(i * bits) / 8] = element & 0xff;
    if (bits > 8) bytes[(i * bits) / 8 + 1] = element >> 8;
  }
  return bytes;
}

/** Random texts, the same in every run. */
export function randomTexts(count: number): string[] {
  return Array.from(noise(count), (value) => (value < 0 ? 'a' : 'b'));
}

/** The bits of a float32 below 1 in a smaller format, cut off; 0 where that has only subnormal numbers. */
function narrowed(word: number, exponentBits: number, mantissaBits: number, bias: number): number {
  const exponent = ((word >>> 23) & 0xff) - 127 + bias;
  if (exponent <= 0) return 0;
  const mantissa = (word & 0x7fffff) >>> (23 - mantissaBits);
  return ((word >>> 31) << (exponentBits + mantissaBits)) | (exponent << mantissaBits) | mantissa;
}
