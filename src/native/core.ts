/**
 * What the addon exports of the core: headers, devices, allocations, engines and loads. What its functions do, throw
 * and reject with stands above their definitions in csrc/napi; a test compares the two.
 */
import type { ErrorCode } from '../base/errors.js';
import type { NativeFileIdentity, NativeShardIndex, NativeSums, PackedHeader } from './packed.js';

export declare const brand: unique symbol;
/** Values that only the addon can make and read. */
export type NativeDevice = { readonly [brand]: 'device' };
export type NativeEngine = { readonly [brand]: 'engine' };
export type NativeLoad = { readonly [brand]: 'load' };
/** A file that loads may have views of in place of copies: csrc/reader/mapped_file.h. */
export type NativeMappedFile = { readonly [brand]: 'mapped file' };
/** A file that is read without waiting: csrc/reader/spot_file.h. */
export type NativeSpotFile = { readonly [brand]: 'spot file' };
/** Bytes that the loads of one loader may hold: csrc/transfer/memory_budget.h. */
export type NativeBudget = { readonly [brand]: 'budget' };
export type NativeAllocation = { readonly [brand]: 'allocation' };
/** Memory for other processes: csrc/device/device.h. */
export type NativeExported = { readonly [brand]: 'exported memory' };
/** Broadcasts between ranks: csrc/device/communicator.h. */
export type NativeCommunicator = { readonly [brand]: 'communicator' };
/** Gives a descriptor to who connects: csrc/base/fd_socket.h. */
export type NativeFdServer = { readonly [brand]: 'fd server' };
/** Bytes that a call has read so far. */
export type NativeProgress = { readonly [brand]: 'progress' };
/** A limit of bytes a second that several engines share: csrc/transfer/pace.h. */
export type NativePace = { readonly [brand]: 'pace' };

/** Keeps files open from their headers to their data: see csrc/base/header_fd_cache.h. */
export type NativeHeaderFdCache = { readonly [brand]: 'header fd cache' };

/** Pages for a buffer of '3fs': csrc/reader/usrbio/usrbio_reservation.h. */
export type NativeReservation = { readonly [brand]: 'reservation' };

/** How an engine reads: `kind` names the reader of csrc/reader, the rest are its options. */
export interface ReaderOptions {
  readonly kind: string;
  readonly [option: string]: unknown;
}

export interface EngineOptions {
  readonly alwaysStage?: boolean;
  readonly maxBytesPerSecond?: number;
  /** In place of it, where several engines share a limit. */
  readonly pace?: NativePace | null;
  readonly stallTimeoutMs?: number;
  readonly chunkBytes?: number;
  /** Loads will convert dtypes: slots get room for the converted elements. */
  readonly converts?: boolean;
  /** Slots are allocated when the engine starts rather than with its first read. */
  readonly slotsAtOnce?: boolean;
  /** GPUs copy from the page cache by themselves where they can: csrc/transfer/engine.h. */
  readonly pinsFiles?: boolean;
  /** The most bytes of all slots together. */
  readonly stagingLimit?: number;
}

/** PlanAllocation::kNone. */
export const NOT_MAPPED = 0xffffffff;

/** csrc/transfer/plan.h, packed. */
export interface NativePlan {
  readonly paths: readonly string[];
  /** 4 numbers of each: see NativeFileIdentity. */
  readonly identities: BigUint64Array;
  readonly allocationSizes: Float64Array;
  readonly allocationBatches: Uint32Array;
  readonly itemFiles: Uint32Array;
  readonly itemAllocations: Uint32Array;
  readonly itemOffsets: Float64Array;
  readonly itemLengths: Float64Array;
  readonly itemDestinations: Float64Array;
  /** No read includes what lies between items. */
  readonly apart?: boolean;
  /** Of items that are runs with holes between them; 0 for those that lie together. Given when one has holes. */
  readonly itemRuns?: Float64Array;
  readonly itemStrides?: Float64Array;
  /** Dtypes by number, in the file and in memory; given when an item converts. */
  readonly itemFrom?: Uint8Array;
  readonly itemTo?: Uint8Array;
  /** Digests: the kind of csrc/base/digest.h of each, and its 32 bytes. */
  readonly itemDigestKinds?: Uint8Array;
  readonly itemDigests?: Uint8Array;
  /** By file, for mapped allocations. */
  readonly mapped?: readonly (NativeMappedFile | null)[];
  /** By allocation: the file that it is a view of, and where in it that begins; NOT_MAPPED for memory. */
  readonly allocationMapped?: Uint32Array;
  readonly allocationMappedOffsets?: Float64Array;
  /** Existing allocations, by allocation; the engine allocates those that are null or missing. */
  readonly memory?: readonly (NativeAllocation | null)[];
}

/** csrc/transfer/transfer.h. */
export interface TransferOptions {
  /** Batches that may be loaded; setWindow() raises it. Default: all. */
  readonly window?: number;
  /** takeReady() will be called. */
  readonly collectReady?: boolean;
  /** Nobody waits for single tensors: waitTransfer() need not resolve for them. */
  readonly whole?: boolean;
  readonly timeoutMs?: number;
  /** The number of one of the engine's devices. Default: 0. */
  readonly device?: number;
  readonly budget?: NativeBudget;
}

/** A file that was read in another way than asked. */
export interface Fallback {
  path: string;
  from: string;
  to: string;
  reason: string;
}

/** What the driver says about a device; empty strings for the host. */
export interface DeviceInfo {
  readonly model: string;
  readonly busId: string;
  /** Path of the driver library. */
  readonly library: string;
  readonly computeCapability: string;
  /** 12040 is 12.4. */
  readonly driverVersion: number;
  /** Shares its memory with the host. */
  readonly integrated: boolean;
  /** -1 when unknown. */
  readonly numaNode: number;
}

/** What the process holds, all loaders together; see csrc/base/metrics.h. */
export interface Metrics {
  /** Bytes of allocations on devices. */
  deviceBytes: number;
  /** Bytes of allocations in host memory. */
  hostBytes: number;
  /** Bytes of tensors that are views of mapped files. */
  mappedBytes: number;
  /** Bytes of staging slots. */
  stagingBytes: number;
  openFiles: number;
  /** Rings of 3FS that a loader has. */
  rings: number;
  /** Files being opened, and chunks being read, converted or copied. */
  inFlight: number;
}

/** An error of the core, as the addon throws it and rejects with it. */
export interface StatusObject {
  code: ErrorCode;
  message: string;
  path?: string;
  tensor?: string;
  offset?: number;
  /** The name of the system's error, where that is the cause. */
  errno?: string;
}

/** What tokens of shareAllocation stand for; `parts`, by token: index of the allocation, offset in it. */
export interface NativeTaken {
  readonly allocations: readonly NativeAllocation[];
  readonly devices: readonly string[];
  readonly sizes: readonly number[];
  readonly parts: Float64Array;
}

/** csrc/napi/file_bindings.cc. */
export type FileKind = 'file' | 'folder' | 'link' | 'other';

/** Its functions. For who calls them: declarations that are packed need none. @internal */
export interface CoreAddon {
  metrics(): Metrics;
  /** Warnings of the core that no logger has had yet. */
  takeWarnings(): string[];
  tables(): { codes: string[]; dtypes: Record<string, number>; conversions: [from: string, to: string][] };
  statFile(path: string): Promise<{ kind: FileKind; size: number; dev: bigint; ino: bigint; mtimeNs: bigint }>;
  listFolder(path: string): Promise<{ names: string[]; kinds: FileKind[] }>;
  realPath(path: string): Promise<string>;
  readLink(path: string): Promise<string>;
  readFile(path: string, maxBytes: number): Promise<ArrayBuffer>;
  deadThreeFs(path: string, errno: string): string;
  isOnThreeFs(path: string): Promise<boolean>;
  areCold(files: readonly { readonly path: string }[], ranges: Float64Array): Promise<boolean>;
  readHeader(
    path: string,
    allowTrailingBytes: boolean,
    fdCache?: NativeHeaderFdCache,
    progress?: NativeProgress,
  ): Promise<PackedHeader>;
  readHeaders(
    paths: readonly string[],
    allowTrailingBytes: boolean,
    fdCache: NativeHeaderFdCache | undefined,
    progress: NativeProgress,
    files: NativeProgress,
    descriptors: number,
  ): Promise<{ headers: PackedHeader[]; error: StatusObject | null }>;
  newProgress(): NativeProgress;
  progressOf(progress: NativeProgress): number;
  newHeaderFdCache(): NativeHeaderFdCache;
  closeHeaderFdCache(fdCache: NativeHeaderFdCache): Promise<void>;
  parseHeader(bytes: Uint8Array, allowTrailingBytes: boolean): Promise<PackedHeader>;
  parseShardIndex(bytes: Uint8Array, path: string): Promise<NativeShardIndex>;
  parseSums(bytes: Uint8Array, path: string): Promise<NativeSums>;
  digestFile(
    path: string,
    identity: NativeFileIdentity,
    kind: number,
    ranges: Float64Array,
    progress: NativeProgress,
  ): Promise<string[]>;
  checkDigests(
    allocation: NativeAllocation,
    ranges: Float64Array,
    kinds: Uint8Array,
    digests: Uint8Array,
  ): Promise<{ wrong: number; expected: string; found: string }>;
  recognizeFormat(bytes: Uint8Array, fileSize: number): { name: string; description: string };
  openDevice(name: string, unified: boolean, near: boolean): Promise<NativeDevice>;
  deviceInfo(device: NativeDevice): DeviceInfo;
  allocate(device: NativeDevice, bytes: number): Promise<NativeAllocation>;
  allocateWithin(device: NativeDevice, bytes: number, budget: NativeBudget): Promise<NativeAllocation | null>;
  totalMemory(device: NativeDevice): Promise<number>;
  checkAvailable(device: NativeDevice, bytes: number): Promise<void>;
  pointerOf(allocation: NativeAllocation): bigint;
  release(allocation: NativeAllocation): void;
  arrayBufferOf(allocation: NativeAllocation, offset: number, length: number): ArrayBuffer;
  readAllocation(allocation: NativeAllocation, offset: number, length: number): Promise<ArrayBuffer>;
  /** Writes bytes at `position` of an open file, which stays open until the promise settles; `path` is for messages. */
  saveAllocation(
    allocation: NativeAllocation,
    offset: number,
    length: number,
    fd: number,
    position: number,
    path: string,
    writeBack: boolean,
  ): Promise<void>;
  /** Copies ranges, [offset, length, position, …], of a file to an open one: csrc/reader/file_copy.h. */
  copyRanges(
    source: string,
    identity: NativeFileIdentity,
    ranges: Float64Array,
    fd: number,
    path: string,
    writeBack: boolean,
    progress: NativeProgress,
  ): Promise<void>;
  shareAllocation(allocation: NativeAllocation, offset: number, length: number): string;
  takeShared(tokens: readonly string[], lengths: Float64Array): NativeTaken;
  revokeShared(token: string): void;
  exportMemory(
    allocations: readonly NativeAllocation[],
    parts: Float64Array,
    size: number,
  ): Promise<{ exported: NativeExported; fd: number; seal: string; busId: string }>;
  closeExported(exported: NativeExported): void;
  importMemory(device: NativeDevice, fd: number, size: number, seal: string): Promise<NativeAllocation>;
  findGpu(busId: string, likely: number): Promise<number>;
  serveFd(path: string, fd: number, text: string): Promise<NativeFdServer>;
  closeServer(server: NativeFdServer): void;
  receiveFd(path: string): Promise<{ exported: NativeExported; fd: number; text: string }>;
  parseDescription(text: string): Promise<PackedHeader>;
  probeNccl(): Promise<{ library: string; version: string }>;
  newNcclId(): Promise<ArrayBuffer>;
  openCommunicator(device: NativeDevice, id: Uint8Array, rank: number, ranks: number): NativeCommunicator;
  broadcast(
    communicator: NativeCommunicator,
    from: readonly (NativeAllocation | null)[],
    to: readonly NativeAllocation[],
    pieces: Float64Array,
    stallTimeoutMs: number,
  ): Promise<void>;
  abandonCommunicator(communicator: NativeCommunicator): void;
  closeCommunicator(communicator: NativeCommunicator): Promise<void>;
  writeAllocation(allocation: NativeAllocation, offset: number, bytes: Uint8Array): Promise<void>;
  /** In bytes: [run, sourceOffset, destinationOffset, then by dimension count, sourceStride, destinationStride]. */
  copyAllocation(source: NativeAllocation, destination: NativeAllocation, runs: Float64Array): Promise<void>;
  /** Of elements in host memory, by numbers of dtypes. */
  convertFloats(
    allocation: NativeAllocation,
    offset: number,
    count: number,
    from: number,
    to: number,
  ): Promise<NativeAllocation>;
  /** '' for what works, else why it does not; see csrc/base/probe.h. */
  probeSystem(): Promise<{ ioUring: string; memoryPlacement: string }>;
  probeFile(path: string): Promise<{
    lease: string;
    residentRead: string;
    residentMap: string;
    cacheCounts: string;
    direct: string;
  }>;
  probeCufile(): Promise<{ library: string; version: string }>;
  extractMountPoint(path: string): string;
  hf3fsLibPath(): string;
  resolveThreeFsMount(
    paths: readonly string[],
    mountPoint: string,
    all: boolean,
  ): Promise<{ mountPoint: string; blockSize: number; notOnMount: StatusObject[] }>;
  loadThreeFs(early?: boolean): Promise<void>;
  reserveThreeFs(device: string, reader: ReaderOptions): NativeReservation;
  dropReservation(reservation: NativeReservation): Promise<void>;
  threeFsAvailability(): Promise<{ available: boolean; reason?: string; remedy?: string; library?: string }>;
  externalMemory(): number;
  /** Rings of 3FS and bytes of their buffers that are kept for later loaders, and that metrics() leaves out. */
  idleThreeFs(): { rings: number; bytes: number };
  /** Gives that back now. */
  dropIdleThreeFs(): Promise<void>;
  setFakeDevices(options: object | null): void;
  mapsFiles(engine: NativeEngine): boolean;
  mapFiles(
    paths: readonly string[],
    identities: BigUint64Array,
    ranges: Float64Array,
    insist: boolean,
  ): Promise<{ files: (NativeMappedFile | null)[]; texts: string[] }>;
  releaseMapping(mapped: NativeMappedFile): void;
  openSpotFile(
    fdCache: NativeHeaderFdCache,
    path: string,
    identity: NativeFileIdentity,
  ): Promise<NativeSpotFile | null>;
  allocateOnSpot(device: NativeDevice, bytes: number): NativeAllocation;
  isHeldOnce(allocation: NativeAllocation): boolean;
  readOnSpot(
    allocation: NativeAllocation,
    files: readonly NativeSpotFile[],
    reads: Float64Array,
    count: number,
  ): boolean;
  mapRegion(
    device: NativeDevice,
    path: string,
    identity: NativeFileIdentity,
    begin: number,
    end: number,
  ): Promise<{ readonly file: NativeMappedFile; readonly allocation: NativeAllocation } | null>;
  isRegionCurrent(file: NativeMappedFile, looks: boolean): boolean;
  isRegionResident(file: NativeMappedFile, begin: number, end: number): Promise<boolean>;
  createEngine(devices: readonly NativeDevice[], reader: ReaderOptions, options: EngineOptions): NativeEngine;
  newBudget(bytes: number): NativeBudget;
  takeBudget(budget: NativeBudget, bytes: number): boolean;
  budgetHeld(budget: NativeBudget): number;
  newPace(bytesPerSecond: number): NativePace | null;
  closeEngine(engine: NativeEngine): Promise<void>;
  stagingBytes(engine: NativeEngine, converts: boolean): number;
  engineTurn(engine: NativeEngine): number;
  takeFallbacks(engine: NativeEngine): Fallback[];
  startTransfer(engine: NativeEngine, plan: NativePlan, options: TransferOptions): Promise<NativeLoad>;
  pollTransfer(load: NativeLoad, out: Float64Array): void;
  transferError(load: NativeLoad): StatusObject | null;
  waitTransfer(load: NativeLoad): Promise<void>;
  takeReady(load: NativeLoad): Uint32Array;
  takeAllocation(load: NativeLoad, index: number): NativeAllocation | null;
  setWindow(engine: NativeEngine, load: NativeLoad, batches: number): void;
  tellMemory(load: NativeLoad): boolean;
  cancelTransfer(engine: NativeEngine, load: NativeLoad): void;
}
