import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';

/** The indices [start, stop) of one dimension of a tensor. */
export interface PartRange {
  readonly dim: number;
  readonly start: number;
  readonly stop: number;
}

/** Where the bytes of a part of a tensor lie in its file: runs at regular distances. */
export interface Part {
  readonly shape: readonly number[];
  /** Of its first byte in the file. */
  readonly fileOffset: number;
  /** Bytes in the file. */
  readonly length: number;
  /** Bytes of a run, and from the first byte of one to that of the next; both 0 where all bytes lie together. */
  readonly run: number;
  readonly stride: number;
}

/** The part of a tensor, by its index, that is wanted; null for all of it. */
export type PartOf = (metadata: SafeTensorsMetadata, tensor: number) => Part | null;

/** The block of a dimension that a rank has: of ceil(size / ranks); the last ranks may have less, or nothing. */
export function blockOf(dim: number, size: number, { rank, size: ranks }: { rank: number; size: number }): PartRange {
  const block = Math.ceil(size / ranks);
  return { dim, start: Math.min(rank * block, size), stop: Math.min((rank + 1) * block, size) };
}

/** INVALID_ARGUMENT for a range of a dtype smaller than a byte that begins or ends within one. */
export function partOf(frame: TensorFrame, dataStart: number, { dim, start, stop }: PartRange): Part | null {
  if (start === 0 && stop === frame.shape[dim]) return null;
  const slice = frame.slice(...frame.shape.map((_, axis) => (axis === dim ? { start, stop } : {})));
  const { shape, byteLength } = slice;
  const together = { shape, fileOffset: dataStart + slice.dataOffsets[0], length: byteLength, run: 0, stride: 0 };
  // Of no bytes, strides may lead behind the file.
  if (byteLength === 0) return { ...together, fileOffset: dataStart + frame.dataOffsets[0] };
  // One range leaves the dimensions outside of it whole: all distances between runs are that of the innermost.
  const { length: run, dims } = slice.grid();
  return dims.length === 0 ? together : { ...together, run, stride: dims.at(-1)!.stride };
}
