import type { Device } from '../device/device.js';
import type { EngineOptions, Fallback, ReaderOptions } from '../native/core.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';

/** Bytes [fileOffset, fileOffset + length) of the file go to byte destOffset of the destination. */
export interface CopyRange {
  readonly fileOffset: number;
  readonly length: number;
  readonly destOffset: number;
}

/** Device memory that a copier fills: an allocation, of which one request's ranges are the copier's to write. */
export interface Destination {
  readonly device: Device;
  readonly byteLength: number;
  /**
   * Address of byte 0, for copiers with native code of their own. Bytes that come through `write` are counted, and a request that ends without all of its ranges is
   * a SHORT_READ; a copier that asks for the pointer answers for all bytes of the request itself.
   */
  readonly pointer: bigint;
  /**
   * Copies bytes in, a MiB a turn of the event loop; they must not change until the promise settles. INVALID_ARGUMENT outside the request's ranges, and when the bytes'
   * buffer is resized or transferred meanwhile; CLOSED when waitIo has settled.
   */
  write(destOffset: number, bytes: Uint8Array): Promise<void>;
}

export interface CopyRequest {
  readonly path: string;
  readonly ranges: readonly CopyRange[];
  readonly destination: Destination;
  /** Aborted when the load fails elsewhere or is given up. */
  readonly signal: AbortSignal;
}

/**
 * Moves ranges of one file: submitIo starts and returns at once, waitIo resolves when every byte is in place or rejects. A load whose copiers write nothing and finish
 * nothing for stallTimeoutMs is STALLED, as is one whose copier takes that long to close.
 */
export interface Copier<P = unknown> {
  submitIo(request: CopyRequest): P;
  waitIo(pending: P): Promise<void>;
  close(): Promise<void>;
}

export type CopierConstructor = (metadata: SafeTensorsMetadata, device: Device) => Copier;
export type CopierFactory = (device: Device, options: Readonly<Record<string, unknown>>) => CopierConstructor;

/** What a built-in copier is made of: a reader and how the engine uses it. Loaders drive such copiers through one engine, across files. */
export interface EngineSpec {
  readonly reader: ReaderOptions;
  readonly engine: EngineOptions;
  /** Tensors in memory that host and device share: see availability.ts. */
  readonly unified?: boolean;
  /** For a reader whose slots are device memory (ReaderNeeds.device_slots): what loads that convert use in its place, and why, for the report. */
  readonly conversionFallback?: { readonly copier: string; readonly reason: string; readonly spec: EngineSpec };
  /** What has to be known of the files before anything is made for them, off the event loop; rejects where this copier cannot read them. */
  readonly resolveForFiles?: (files: readonly string[]) => Promise<ResolvedSpec>;
}

/** How certain files are read. */
export interface ResolvedSpec {
  readonly spec: EngineSpec;
  /** The copier that this really is. */
  readonly copier: string;
  readonly fallbacks: readonly Fallback[];
}

export const ENGINE: unique symbol = Symbol('fastsafetensors-node.engine');
export type EngineConstructor = CopierConstructor & { readonly [ENGINE]: EngineSpec };

export function engineOf(make: CopierConstructor): EngineSpec | undefined {
  return (make as Partial<EngineConstructor>)[ENGINE];
}
