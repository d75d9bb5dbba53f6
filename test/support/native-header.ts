import { DTYPE_BITS, DTYPE_NAMES, type DTypeName } from '../../src/base/dtype.js';
import type { NativeHeader } from '../../src/native/packed.js';

/** A packed header as the addon would make it, the tensors one after the other. */
export function nativeHeader(
  tensors: readonly { name: string; dtype: DTypeName; shape: readonly number[] }[],
  metadata: readonly string[] = [],
): NativeHeader {
  const count = tensors.length;
  const nameEnds = new Uint32Array(count);
  const dtypes = new Uint8Array(count);
  const begins = new Float64Array(count);
  const ends = new Float64Array(count);
  const rankEnds = new Uint32Array(count);
  const dims: number[] = [];
  let names = '';
  let at = 0;
  tensors.forEach(({ name, dtype, shape }, i) => {
    names += name;
    nameEnds[i] = names.length;
    dtypes[i] = DTYPE_NAMES.indexOf(dtype);
    begins[i] = at;
    at += (shape.reduce((product, size) => product * size, 1) * DTYPE_BITS[dtype]) / 8;
    ends[i] = at;
    dims.push(...shape);
    rankEnds[i] = dims.length;
  });
  const headerLength = 64;
  return {
    headerLength,
    sizeBytes: 8 + headerLength + at,
    dataStart: 8 + headerLength,
    tensorCount: count,
    trailingBytes: 0,
    identity: null,
    names,
    nameEnds,
    dtypes,
    begins,
    ends,
    rankEnds,
    dims: Float64Array.from(dims),
    metadataTexts: metadata.join(''),
    metadataEnds: Uint32Array.from(metadata, (_, i) => metadata.slice(0, i + 1).join('').length),
  };
}
