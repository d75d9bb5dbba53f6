/** What the addon exports of the core: headers, devices, memory, engines and loads. Held against the C++ by test/addon-interface.test.ts. */
import type { ErrorCode } from '../base/errors.js';
import type { NativeFileIdentity, NativeHeader, NativeShardIndex } from './packed.js';

export declare const brand: unique symbol;
/** Values that only the addon can make and read. */
export type NativeDevice = { readonly [brand]: 'device' };
export type NativeEngine = { readonly [brand]: 'engine' };
export type NativeLoad = { readonly [brand]: 'load' };
export type NativeAllocation = { readonly [brand]: 'allocation' };
/** Keeps files open from their headers to their data: see csrc/base/header_fd_cache.h. */
export type NativeHeaderFdCache = { readonly [brand]: 'header fd cache' };

/** How an engine reads: `kind` names the reader of csrc/reader, the rest are its options. */
export interface ReaderOptions {
  readonly kind: string;
  readonly [option: string]: unknown;
}

export interface EngineOptions {
  readonly alwaysStage?: boolean;
  readonly maxBytesPerSecond?: number;
  readonly stallTimeoutMs?: number;
  readonly chunkBytes?: number;
  /** Loads will convert: slots with room for that. */
  readonly converts?: boolean;
}

/** csrc/transfer/plan.h, packed. */
export interface NativePlan {
  readonly files: readonly { readonly path: string; readonly identity: NativeFileIdentity }[];
  readonly allocationSizes: Float64Array;
  readonly allocationBatches: Uint32Array;
  readonly itemFiles: Uint32Array;
  readonly itemAllocations: Uint32Array;
  readonly itemOffsets: Float64Array;
  readonly itemLengths: Float64Array;
  readonly itemDestinations: Float64Array;
  /** Dtypes as numbers, in the file and in memory: given where something converts. */
  readonly itemFrom?: Uint8Array;
  readonly itemTo?: Uint8Array;
  /** Memory that is there already, by allocation; the engine allocates the rest. */
  readonly memory?: readonly (NativeAllocation | null)[];
}

export interface TransferOptions {
  readonly window?: number;
  readonly collectReady?: boolean;
  readonly timeoutMs?: number;
}

export interface Fallback {
  path: string;
  from: string;
  to: string;
  reason: string;
}

/** What a driver says of a device; empty strings for the host. */
export interface DeviceInfo {
  readonly model: string;
  readonly busId: string;
  /** The driver library that was loaded. */
  readonly library: string;
  readonly computeCapability: string;
  /** 12040 is 12.4. */
  readonly driverVersion: number;
  /** Shares its memory with the host. */
  readonly integrated: boolean;
  /** -1 when unknown. */
  readonly numaNode: number;
}

export interface Metrics {
  deviceBytes: number;
  hostBytes: number;
  stagingBytes: number;
  openFiles: number;
  rings: number;
  inFlight: number;
}

/** What the core says of an error. */
export interface StatusObject {
  code: ErrorCode;
  message: string;
  path?: string;
  tensor?: string;
  offset?: number;
}

export interface CoreAddon {
  metrics(): Metrics;
  tables(): { codes: string[]; dtypes: Record<string, number>; conversions: [from: string, to: string][] };
  readHeader(path: string, allowTrailingBytes: boolean, fdCache?: NativeHeaderFdCache): Promise<NativeHeader>;
  newHeaderFdCache(): NativeHeaderFdCache;
  closeHeaderFdCache(fdCache: NativeHeaderFdCache): Promise<void>;
  parseHeader(bytes: Uint8Array, allowTrailingBytes: boolean): Promise<NativeHeader>;
  parseShardIndex(bytes: Uint8Array, path: string): Promise<NativeShardIndex>;
  openDevice(name: string, unified: boolean): Promise<NativeDevice>;
  deviceInfo(device: NativeDevice): DeviceInfo;
  allocate(device: NativeDevice, bytes: number): Promise<NativeAllocation>;
  checkAvailable(device: NativeDevice, bytes: number): Promise<void>;
  pointerOf(allocation: NativeAllocation): bigint;
  release(allocation: NativeAllocation): void;
  arrayBufferOf(allocation: NativeAllocation, offset: number, length: number): ArrayBuffer;
  readAllocation(allocation: NativeAllocation, offset: number, length: number): Promise<ArrayBuffer>;
  writeAllocation(allocation: NativeAllocation, offset: number, bytes: Uint8Array): Promise<void>;
  /** In bytes: [run, sourceOffset, destinationOffset, then by dimension count, sourceStride, destinationStride]. */
  copyAllocation(source: NativeAllocation, destination: NativeAllocation, runs: Float64Array): Promise<void>;
  probeCufile(): Promise<{ library: string; version: string }>;
  extractMountPoint(path: string): string;
  hf3fsLibPath(): string;
  resolveThreeFsMount(
    paths: readonly string[],
    mountPoint: string,
    all: boolean,
  ): Promise<{ mountPoint: string; blockSize: number; notOnMount: StatusObject[] }>;
  loadThreeFs(): Promise<void>;
  threeFsAvailability(): Promise<{ available: boolean; reason?: string; remedy?: string; library?: string }>;
  setFakeDevices(options: object | null): void;
  createEngine(device: NativeDevice, reader: ReaderOptions, options: EngineOptions): NativeEngine;
  closeEngine(engine: NativeEngine): Promise<void>;
  stagingBytes(engine: NativeEngine, converts: boolean): number;
  takeFallbacks(engine: NativeEngine): Fallback[];
  startTransferSync(engine: NativeEngine, plan: NativePlan, options: TransferOptions): NativeLoad;
  /** The same off the event loop. */
  startTransfer(engine: NativeEngine, plan: NativePlan, options: TransferOptions): Promise<NativeLoad>;
  pollTransfer(load: NativeLoad, out: Float64Array): void;
  transferError(load: NativeLoad): StatusObject | null;
  waitTransfer(load: NativeLoad): Promise<void>;
  takeReady(load: NativeLoad): Uint32Array;
  takeAllocation(load: NativeLoad, index: number): NativeAllocation | null;
  setWindow(engine: NativeEngine, load: NativeLoad, batches: number): void;
  cancelTransfer(engine: NativeEngine, load: NativeLoad): void;
}
