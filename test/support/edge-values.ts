import type { DTypeName } from 'fastsafetensors-node';
import { BITS } from './model-files.js';

/** Exponent and mantissa bits of the wide floats. */
const WIDE: Partial<Record<DTypeName, readonly [exponentBits: number, mantissaBits: number]>> = {
  F32: [8, 23],
  F64: [11, 52],
};

/** Mantissa bits of what they are rounded to. */
const NARROW = [2, 3, 7, 10, 23];

/**
 * Elements at which a conversion can go wrong, as they lie in a file. Of up to 16 bits: every value. Of more: each
 * exponent near those of narrower floats, and each tenth beyond, with mantissas at and beside each tie, both signs.
 */
export function edgeValues(dtype: DTypeName): Uint8Array {
  const bytes = BITS[dtype] / 8;
  const values: bigint[] = [];
  const wide = WIDE[dtype];
  if (wide === undefined) {
    for (let value = 0; value < 2 ** BITS[dtype]; ++value) values.push(BigInt(value));
  } else {
    const [exponentBits, mantissaBits] = wide;
    const top = 2 ** exponentBits - 1;
    const mask = (1n << BigInt(mantissaBits)) - 1n;
    const mantissas = new Set<bigint>([0n, 1n, mask, mask - 1n, 1n << BigInt(mantissaBits - 1)]);
    for (const bits of NARROW.filter((narrow) => narrow < mantissaBits)) {
      // Subnormal results have fewer bits.
      for (let kept = 0; kept <= bits; ++kept) {
        const half = 1n << BigInt(mantissaBits - kept - 1);
        for (const above of [0n, half * 2n, mask & ~(half * 2n - 1n)]) {
          for (const low of [half - 1n, half, half + 1n]) mantissas.add((above + low) & mask);
        }
      }
    }
    for (let exponent = 0; exponent <= top; ++exponent) {
      if (Math.abs(exponent - (top - 1) / 2) > 160 && exponent % 10 > 0 && exponent < top) continue;
      for (const mantissa of mantissas) {
        const magnitude = (BigInt(exponent) << BigInt(mantissaBits)) | mantissa;
        values.push(magnitude, magnitude | (1n << BigInt(BITS[dtype] - 1)));
      }
    }
  }
  const out = new DataView(new ArrayBuffer(values.length * bytes));
  values.forEach((value, i) => {
    if (bytes === 1) out.setUint8(i, Number(value));
    else if (bytes === 2) out.setUint16(2 * i, Number(value), true);
    else if (bytes === 4) out.setUint32(4 * i, Number(value), true);
    else out.setBigUint64(8 * i, value, true);
  });
  return new Uint8Array(out.buffer);
}
