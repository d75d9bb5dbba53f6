import type { DTypeName } from 'fastsafetensors-node';
import { BITS, type Entry } from './model-files.js';

interface Layout {
  readonly exponentBits: number;
  readonly mantissaBits: number;
  /** 'ieee': infinities and NaNs; 'nan': all ones are NaN; 'fnuz': one zero, what would be its negative is NaN. */
  readonly special: 'ieee' | 'nan' | 'fnuz';
}

const LAYOUTS: Partial<Record<DTypeName, Layout>> = {
  F64: { exponentBits: 11, mantissaBits: 52, special: 'ieee' },
  F32: { exponentBits: 8, mantissaBits: 23, special: 'ieee' },
  F16: { exponentBits: 5, mantissaBits: 10, special: 'ieee' },
  BF16: { exponentBits: 8, mantissaBits: 7, special: 'ieee' },
  F8_E5M2: { exponentBits: 5, mantissaBits: 2, special: 'ieee' },
  F8_E4M3: { exponentBits: 4, mantissaBits: 3, special: 'nan' },
  F8_E5M2FNUZ: { exponentBits: 5, mantissaBits: 2, special: 'fnuz' },
  F8_E4M3FNUZ: { exponentBits: 4, mantissaBits: 3, special: 'fnuz' },
};

const signOf = ({ exponentBits, mantissaBits }: Layout) => 1n << BigInt(exponentBits + mantissaBits);
const biasOf = ({ exponentBits, special }: Layout) => (1 << (exponentBits - 1)) - (special === 'fnuz' ? 0 : 1);

/** What is above the largest finite value: an infinity, or else NaN. */
function aboveOf(layout: Layout): bigint {
  if (layout.special === 'ieee') return BigInt((1 << layout.exponentBits) - 1) << BigInt(layout.mantissaBits);
  return layout.special === 'nan' ? signOf(layout) - 1n : signOf(layout);
}

/** Whether an element's bits are NaN. */
export function isNotANumber(dtype: DTypeName, bits: bigint): boolean {
  const layout = LAYOUTS[dtype]!;
  const magnitude = bits & (signOf(layout) - 1n);
  if (layout.special === 'fnuz') return bits === signOf(layout);
  return layout.special === 'nan' ? magnitude === aboveOf(layout) : magnitude > aboveOf(layout);
}

/**
 * One element's bits in another dtype, by whole numbers alone: a float is mantissa * 2^power, rounding compares with
 * half a unit.
 */
function convertBits(from: DTypeName, to: DTypeName, bits: bigint): bigint {
  if (from === 'F64' && to !== 'F32' && to !== 'F16') return convertBits('F32', to, convertBits('F64', 'F32', bits));
  const layout = LAYOUTS[from]!;
  const target = LAYOUTS[to]!;
  const { exponentBits, mantissaBits } = layout;
  const mask = (1n << BigInt(mantissaBits)) - 1n;
  const top = (1 << exponentBits) - 1;
  const fnuz = target.special === 'fnuz';
  const sign = (bits & signOf(layout)) !== 0n ? signOf(target) : 0n;
  const exponent = Number(bits >> BigInt(mantissaBits)) & top;
  const mantissa = bits & mask;
  const above = fnuz ? aboveOf(target) : sign | aboveOf(target);
  if (isNotANumber(from, bits)) {
    if (target.special !== 'ieee') return above;
    const payload = BITS[to] > 8 ? (mantissa << 64n) >> BigInt(64 + mantissaBits - target.mantissaBits) : 0n;
    return above | payload | (1n << BigInt(target.mantissaBits - 1));
  }
  if (layout.special === 'ieee' && exponent === top) return above;
  const zero = fnuz ? 0n : sign;
  const whole = exponent === 0 ? mantissa : mantissa | (mask + 1n);
  if (whole === 0n) return zero;
  const power = Math.max(exponent, 1) - biasOf(layout) - mantissaBits;
  const length = whole.toString(2).length;
  const unit = Math.max(power + length - 1, 1 - biasOf(target)) - target.mantissaBits; // 2^unit: the last place
  const drop = BigInt(Math.max(unit - power, 0));
  const scaled = whole << BigInt(Math.max(power - unit, 0));
  let result = scaled >> drop;
  const rest = scaled - (result << drop);
  const half = drop > 0n ? 1n << (drop - 1n) : 1n;
  if (rest > half || (rest === half && (result & 1n) === 1n)) ++result;
  const exponentField = BigInt(unit + target.mantissaBits + biasOf(target) - 1);
  const value = (exponentField << BigInt(target.mantissaBits)) + result;
  if (value >= aboveOf(target)) return above;
  return value === 0n ? zero : sign | value;
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

/** The elements with each NaN as the quiet one without a payload, with its sign. */
export function withQuietNaNs(dtype: DTypeName, bytes: Uint8Array): Uint8Array {
  const layout = LAYOUTS[dtype]!;
  if (layout.special !== 'ieee') return bytes; // these have one
  const size = BITS[dtype] / 8;
  const out = Buffer.from(bytes);
  const read = (i: number) => (size === 8 ? out.readBigUInt64LE(i) : BigInt(out.readUIntLE(i, size)));
  for (let i = 0; i < out.length; i += size) {
    const bits = read(i);
    if (!isNotANumber(dtype, bits)) continue;
    const quiet = (bits & signOf(layout)) | aboveOf(layout) | (1n << BigInt(layout.mantissaBits - 1));
    if (size === 8) out.writeBigUInt64LE(quiet, i);
    else out.writeUIntLE(Number(quiet), i, size);
  }
  return out;
}
