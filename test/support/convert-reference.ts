import type { DTypeName } from 'fastsafetensors-node';
import { BITS, type Entry } from './model-files.js';

/** Exponent and mantissa bits; an E4M3 has no infinities and one NaN. */
const LAYOUTS: Partial<Record<DTypeName, readonly [exponent: number, mantissa: number]>> = {
  F64: [11, 52],
  F32: [8, 23],
  F16: [5, 10],
  BF16: [8, 7],
  F8_E5M2: [5, 2],
  F8_E4M3: [4, 3],
};

/**
 * One element's bits in another dtype, by whole numbers alone: a float is mantissa * 2^power, rounding compares with
 * half a unit.
 */
function convertBits(from: DTypeName, to: DTypeName, bits: bigint): bigint {
  const [exponentBits, mantissaBits] = LAYOUTS[from]!;
  const [toExponentBits, toMantissaBits] = LAYOUTS[to]!;
  const mask = (1n << BigInt(mantissaBits)) - 1n;
  const top = (1 << exponentBits) - 1;
  const sign = (bits >> BigInt(exponentBits + mantissaBits)) << BigInt(toExponentBits + toMantissaBits);
  const exponent = Number(bits >> BigInt(mantissaBits)) & top;
  const mantissa = bits & mask;
  const infinity = BigInt((1 << toExponentBits) - 1) << BigInt(toMantissaBits);
  const notANumber = exponent === top && (from === 'F8_E4M3' ? mantissa === mask : mantissa !== 0n);
  if (notANumber) {
    const widened = (mantissa << 64n) >> BigInt(64 + mantissaBits - toMantissaBits);
    return sign | infinity | widened | (1n << BigInt(toMantissaBits - 1));
  }
  if (exponent === top && from !== 'F8_E4M3') return sign | infinity;
  const whole = exponent === 0 ? mantissa : mantissa | (mask + 1n);
  if (whole === 0n) return sign;
  const power = Math.max(exponent, 1) - ((1 << (exponentBits - 1)) - 1) - mantissaBits;
  const length = whole.toString(2).length;
  const toBias = (1 << (toExponentBits - 1)) - 1;
  const unit = Math.max(power + length - 1, 1 - toBias) - toMantissaBits; // 2^unit is the last place of the result
  const drop = BigInt(Math.max(unit - power, 0));
  const scaled = whole << BigInt(Math.max(power - unit, 0));
  let result = scaled >> drop;
  const rest = scaled - (result << drop);
  const half = drop > 0n ? 1n << (drop - 1n) : 1n;
  if (rest > half || (rest === half && (result & 1n) === 1n)) ++result;
  const exponentField = BigInt(unit + toMantissaBits + toBias - 1);
  const value = (exponentField << BigInt(toMantissaBits)) + result;
  return sign | (value < infinity ? value : infinity);
}

function convertBytes(from: DTypeName, to: DTypeName, bytes: Uint8Array): Uint8Array {
  const fromSize = BITS[from] / 8;
  const toSize = BITS[to] / 8;
  const converted = new Uint8Array((bytes.length / fromSize) * toSize);
  for (let i = 0; i < bytes.length / fromSize; ++i) {
    let bits = 0n;
    for (let byte = fromSize - 1; byte >= 0; --byte) bits = (bits << 8n) | BigInt(bytes[i * fromSize + byte]!);
    bits = convertBits(from, to, bits);
    for (let byte = 0; byte < toSize; ++byte) converted[i * toSize + byte] = Number((bits >> BigInt(8 * byte)) & 0xffn);
  }
  return converted;
}

/** What a tensor is after a load with `dtype`: floating ones converted, others as they are. */
export function converted(entry: Entry, dtype: DTypeName): Entry {
  if (entry.dtype === dtype || !LAYOUTS[entry.dtype]) return entry;
  return { ...entry, dtype, bytes: convertBytes(entry.dtype, dtype, entry.bytes) };
}
