/** The contract of copiers, for those of the user's own. Copiers of this package are engines: see engine-spec.ts. */
import type { Device } from '../device/device.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import type { HeaderOf } from '../safetensors/names-of-no-file.js';

/** Bytes [fileOffset, fileOffset + length) of the file go to byte destOffset of the destination. */
export interface CopyRange {
  readonly fileOffset: number;
  readonly length: number;
  readonly destOffset: number;
}

/** Device memory that a copier fills: one allocation, of which the copier may write the ranges of its request. */
export interface Destination {
  readonly device: Device;
  readonly byteLength: number;
  /**
   * Address of byte 0, for copiers with native code. The loader counts the bytes that come through `write`, and a
   * request that ends without all of its ranges is a SHORT_READ. A copier that reads `pointer` is itself responsible
   * for every byte of the request.
   */
  readonly pointer: bigint;
  /**
   * Copies bytes in, 1 MiB for each turn of the event loop. They must not change until the promise settles.
   * INVALID_ARGUMENT outside the ranges of the request, and when the buffer of the bytes is resized or transferred
   * meanwhile; CLOSED once waitIo has settled.
   */
  write(destOffset: number, bytes: Uint8Array): Promise<void>;
}

/** What a copier is asked for: ranges of one file into one allocation. */
export interface CopyRequest {
  readonly path: string;
  readonly ranges: readonly CopyRange[];
  readonly destination: Destination;
  /** Aborted when the load fails elsewhere or is cancelled. */
  readonly signal: AbortSignal;
}

/**
 * Copies ranges of one file. submitIo starts a request and returns at once; waitIo resolves when every byte of it is in
 * place, or rejects. When all copiers of a load neither write nor finish anything for stallTimeoutMs, the load is
 * STALLED; so it is when a copier takes that long to close.
 */
export interface Copier<P = unknown> {
  submitIo(request: CopyRequest): P;
  waitIo(pending: P): Promise<void>;
  close(): Promise<void>;
}

/** Makes the copier of one file. */
export type CopierConstructor = (metadata: SafeTensorsMetadata, device: Device) => Copier;
/** Makes the constructor for one loader: of its device, and of its options, with `copierOptions` over them. */
export interface CopierFactory {
  (device: Device, options: Readonly<Record<string, unknown>>): CopierConstructor;
  /**
   * The header of a name that is no file, for a copier that gets its bytes from elsewhere: a loader asks when none of
   * the names that it was given exists. It may come from SafeTensorsMetadata.fromBuffer(); requests then have the name
   * as their path. undefined: there is none of this name.
   */
  readonly metadata?: HeaderOf;
}
