/** One checked header: packed, one entry per tensor in the order of offsets. */
export interface NativeHeader {
  /** Bytes of JSON, padding included. */
  readonly headerLength: number;
  /** Bytes of the whole file. */
  readonly sizeBytes: number;
  /** Where the data begins: 8 + headerLength. */
  readonly dataStart: number;
  readonly tensorCount: number;
  /** Bytes after the last tensor; not 0 only with allowTrailingBytes. */
  readonly trailingBytes: number;
  /** There are digests of its tensors, in `__metadata__` or in a file beside it. */
  readonly hasSums?: boolean;
  /** What the file was when it was read; null when the header came from memory. */
  readonly identity: NativeFileIdentity | null;
  /** Every name, one after the other; long ones as UTF-8. */
  readonly names: string | Uint8Array;
  /** Where each name ends in `names`, in UTF-16 units or bytes. */
  readonly nameEnds: Uint32Array;
  /** Indices into DTYPE_NAMES. */
  readonly dtypes: Uint8Array;
  /** Bytes from dataStart. */
  readonly begins: Float64Array;
  /** Bytes from dataStart. */
  readonly ends: Float64Array;
  /** Where each shape ends in `dims`. */
  readonly rankEnds: Uint32Array;
  /** Every shape, one after the other. */
  readonly dims: Float64Array;
  /** Of `__metadata__`: key, value, key, value, … one after the other. */
  readonly metadataTexts: string | Uint8Array;
  /** Where each of them ends in `metadataTexts`, in UTF-16 units or bytes. */
  readonly metadataEnds: Uint32Array;
  /** By which many names, and keys of `__metadata__`, are found: csrc/safetensors/text_table.h. */
  readonly nameSlots?: Uint32Array;
  readonly metadataSlots?: Uint32Array;
  readonly textSeed?: number;
}

/**
 * What the addon hands over for a header: the block of csrc/safetensors/packed_header.h, names and `__metadata__`; null
 * where those are in the block. See unpackHeader.
 */
export type PackedHeader = readonly [block: ArrayBuffer, names: string | null, metadataTexts: string | null];

/** csrc/safetensors/shard_index.h, packed in the same way. */
export interface NativeShardIndex {
  readonly names: string | Uint8Array;
  readonly nameEnds: Uint32Array;
  /** By tensor: the number of its shard. */
  readonly shardOf: Uint32Array;
  /** Names of files as they are spelled, each once. */
  readonly shards: string | Uint8Array;
  readonly shardEnds: Uint32Array;
  /** -1 for none. */
  readonly totalSize: number;
}

/** csrc/safetensors/sums.h, packed. */
export interface NativeSums {
  readonly names: string | Uint8Array;
  readonly nameEnds: Uint32Array;
  /** By tensor: the kind of csrc/base/digest.h, and its 32 bytes. */
  readonly kinds: Uint8Array;
  readonly digests: Uint8Array;
  /** The text of a digest; '' for none. */
  readonly header: string;
  /** -1 for none. */
  readonly size: number;
}

/** Device and inode, size in bytes, nanoseconds since the epoch. */
export interface NativeFileIdentity {
  readonly dev: bigint;
  readonly ino: bigint;
  readonly size: bigint;
  readonly mtimeNs: bigint;
}
