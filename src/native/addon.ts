/** The only file that touches the addon. Native errors become FastSafetensorsErrors here. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type ErrorCode, FastSafetensorsError } from '../base/errors.js';
import type { NativeFileIdentity, NativeHeader, NativeShardIndex } from './packed.js';

declare const brand: unique symbol;
/** Values that only the addon can make and read. */
export type NativeDevice = { readonly [brand]: 'device' };
export type NativeEngine = { readonly [brand]: 'engine' };
export type NativeLoad = { readonly [brand]: 'load' };
export type NativeMemory = { readonly [brand]: 'memory' };
/** Files that stay open from their headers to their data: see csrc/base/header_fd_cache.h. */
export type NativeOpenedFiles = { readonly [brand]: 'opened files' };

/** How an engine reads: `kind` names the reader of csrc/reader, the rest are its options. */
export interface ReaderOptions {
  readonly kind: string;
  readonly [option: string]: unknown;
}

export interface EngineOptions {
  readonly alwaysStage?: boolean;
  readonly maxBytesPerSecond?: number;
  readonly stallTimeoutMs?: number;
  readonly slotBytes?: number;
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
  readonly memory?: readonly (NativeMemory | null)[];
}

export interface TransferOptions {
  readonly window?: number;
  readonly collectReady?: boolean;
  readonly timeoutMs?: number;
  readonly alwaysStage?: boolean;
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

interface Addon extends OrtAddon {
  metrics(): Metrics;
  tables(): { codes: string[]; dtypes: Record<string, number>; conversions: [from: string, to: string][] };
  readHeader(path: string, allowTrailingBytes: boolean, opened?: NativeOpenedFiles): Promise<NativeHeader>;
  newOpenedFiles(): NativeOpenedFiles;
  closeOpenedFiles(opened: NativeOpenedFiles): Promise<void>;
  parseHeader(bytes: Uint8Array, allowTrailingBytes: boolean): Promise<NativeHeader>;
  parseShardIndex(bytes: Uint8Array, path: string): Promise<NativeShardIndex>;
  openDevice(name: string, unified: boolean): Promise<NativeDevice>;
  deviceInfo(device: NativeDevice): DeviceInfo;
  allocate(device: NativeDevice, bytes: number): Promise<NativeMemory>;
  checkRoom(device: NativeDevice, bytes: number): Promise<void>;
  pointerOf(memory: NativeMemory): bigint;
  release(memory: NativeMemory): void;
  arrayBufferOf(memory: NativeMemory, offset: number, length: number): ArrayBuffer;
  readAllocation(memory: NativeMemory, offset: number, length: number): Promise<ArrayBuffer>;
  writeAllocation(memory: NativeMemory, offset: number, bytes: Uint8Array): Promise<void>;
  /** Runs at regular distances, in bytes: [run, sourceOffset, destinationOffset, then by dimension count, sourceStride, destinationStride]. */
  copyAllocation(source: NativeMemory, destination: NativeMemory, copy: Float64Array): Promise<void>;
  probeCufile(): Promise<{ library: string; version: string }>;
  extractMountPoint(path: string): string;
  hf3fsLibPath(): string;
  lookAtThreeFs(
    paths: readonly string[],
    mountPoint: string,
    all: boolean,
  ): Promise<{ mountPoint: string; blockSize: number; misfits: StatusObject[] }>;
  loadThreeFs(): Promise<void>;
  threeFsAvailability(): Promise<{ available: boolean; reason?: string; remedy?: string; library?: string }>;
  setFakeDevices(options: object | null): void;
  createEngine(device: NativeDevice, reader: ReaderOptions, options: EngineOptions): NativeEngine;
  closeEngine(engine: NativeEngine): Promise<void>;
  abandonEngine(engine: NativeEngine): void;
  stagingBytes(engine: NativeEngine, converts: boolean): number;
  takeFallbacks(engine: NativeEngine): Fallback[];
  startTransfer(engine: NativeEngine, plan: NativePlan, options: TransferOptions): NativeLoad;
  /** The same off the event loop. */
  beginTransfer(engine: NativeEngine, plan: NativePlan, options: TransferOptions): Promise<NativeLoad>;
  pollTransfer(load: NativeLoad, out: Float64Array): void;
  transferError(load: NativeLoad): StatusObject | null;
  waitTransfer(load: NativeLoad): Promise<void>;
  takeReady(load: NativeLoad): Uint32Array;
  takeAllocation(load: NativeLoad, index: number): NativeMemory | null;
  setWindow(engine: NativeEngine, load: NativeLoad, batches: number): void;
  cancelTransfer(engine: NativeEngine, load: NativeLoad): void;

  // ---- csrc/napi/tf_bindings.cc ----
  convertElements(memory: NativeMemory, offset: number, count: number, how: ElementConversion): Promise<NativeMemory>;
  tfRegister(): TensorFlowLibrary;
  tfAdopt(memory: NativeMemory, offset: number, length: number, dtype: number, shape: Float64Array): number;
  tfRelease(token: number): void;
}

/** csrc/convert/element_convert.h. With `scale`: value * scale + min. */
export interface ElementConversion {
  /** Index into DTYPE_NAMES. */
  readonly from: number;
  readonly to: 'float32' | 'int32';
  readonly scale?: number;
  readonly min?: number;
}

/** The TensorFlow of this process and the name of the op that adopts memory in it. */
export interface TensorFlowLibrary {
  readonly op: string;
  readonly version: string;
  readonly library: string;
}

/** What the core says of an error. */
export interface StatusObject {
  code: ErrorCode;
  message: string;
  path?: string;
  tensor?: string;
  offset?: number;
}

// ---- ONNX Runtime: csrc/napi/ort_bindings.cc --------------------------------------------------------------------------------

export type NativeOrtSession = { readonly [brand]: 'ort session' };
export type NativeOrtControl = { readonly [brand]: 'ort control' };
export type NativeOrtValue = { readonly [brand]: 'ort value' };

/** A tensor for ONNX Runtime: its element type by ONNX's number, and its elements in one of four places. */
export interface OrtSource {
  readonly type: number;
  readonly dims: readonly number[];
  readonly memory?: NativeMemory;
  readonly offset?: number;
  readonly byteLength?: number;
  readonly data?: Uint8Array;
  readonly strings?: readonly string[];
  readonly value?: NativeOrtValue;
}
export interface OrtFeed extends OrtSource {
  readonly name: string;
}
export interface OrtFetch extends Partial<OrtSource> {
  readonly name: string;
  /** Leave it where the session runs. */
  readonly onDevice?: boolean;
  /** Write it into the source's place. */
  readonly given?: boolean;
}
export interface OrtPort {
  readonly name: string;
  readonly isTensor: boolean;
  readonly type: number;
  readonly shape: readonly (number | string)[];
}
/** One of strings, data and value, which has byteLength, device and pointer. */
export interface OrtResult {
  readonly type: number;
  readonly dims: number[];
  readonly strings?: string[];
  readonly data?: ArrayBuffer;
  readonly value?: NativeOrtValue;
  readonly byteLength?: number;
  readonly device?: string;
  readonly pointer?: bigint;
}
export interface OrtRunConfig {
  readonly logSeverityLevel?: number;
  readonly logVerbosityLevel?: number;
  readonly tag?: string;
  readonly entries?: readonly (readonly [string, string])[];
}
export interface OrtSessionConfig {
  readonly device: string;
  /** For messages. */
  readonly modelName: string;
  readonly model: string | Uint8Array;
  readonly initializers?: readonly OrtFeed[];
  readonly externalFiles?: readonly { readonly path: string; readonly data: Uint8Array }[];
  readonly entries?: readonly (readonly [string, string])[];
  readonly providerOptions?: readonly (readonly [string, string])[];
  readonly freeDimensions?: readonly (readonly [string, number])[];
  readonly [option: string]: unknown;
}
interface OrtAddon {
  ortLibrary(logSeverity: number, device?: string): { path: string; version: string };
  ortCreateSession(config: OrtSessionConfig, control: NativeOrtControl): Promise<NativeOrtSession>;
  ortPorts(session: NativeOrtSession): { inputs: OrtPort[]; outputs: OrtPort[] };
  ortNewControl(): NativeOrtControl;
  ortStop(control: NativeOrtControl): void;
  ortEndProcess(): void;
  ortRun(
    session: NativeOrtSession,
    control: NativeOrtControl,
    feeds: readonly OrtFeed[],
    fetches: readonly OrtFetch[],
    config: OrtRunConfig,
  ): Promise<(OrtResult | null)[]>;
  ortCloseSession(session: NativeOrtSession): Promise<void>;
  ortReadValue(value: NativeOrtValue): Promise<ArrayBuffer>;
  ortReleaseValue(value: NativeOrtValue): void;
  ortDescribe(source: OrtSource): {
    pointer: bigint;
    device: string;
    name: string;
    id: number;
    vendorId: number;
    byteLength: number;
  };
}

// ------------------------------------------------------------------------------------------------------------------------

let addon: Addon | undefined;

/** Where package.json lies. */
export function packageFolder(): string {
  let folder = __dirname;
  while (!existsSync(join(folder, 'package.json'))) {
    const parent = dirname(folder);
    if (parent === folder) return __dirname;
    folder = parent;
  }
  return folder;
}

function load(): Addon {
  const supported = process.platform === 'linux' && (process.arch === 'x64' || process.arch === 'arm64');
  if (!supported) {
    throw new FastSafetensorsError(
      'PLATFORM_UNSUPPORTED',
      `fastsafetensors-node loads weights on Linux x64 and arm64, this is ${process.platform} ${process.arch}; metadata types and tests with mocks work everywhere`,
    );
  }
  const folder = packageFolder();
  // The developers' build first: who has one means it.
  const built = process.env.FASTSAFETENSORS_NATIVE || join(folder, 'build', 'cmake', 'Release', 'fastsafetensors.node');
  try {
    if (existsSync(built)) return require(built) as Addon;
    return (require('node-gyp-build') as (folder: string) => Addon)(folder);
  } catch (cause) {
    throw new FastSafetensorsError(
      'PLATFORM_UNSUPPORTED',
      `the native part of fastsafetensors-node cannot be loaded: ${(cause as Error).message}; run \`npm run setup\` in a clone, or \`npx node-gyp rebuild\` in ${folder}`,
      { cause },
    );
  }
}

/** The addon, loaded when it is first needed: importing the package works on every platform. */
export function native(): Addon {
  addon ??= load();
  return addon;
}

/** A FastSafetensorsError for what the core says. Its stack begins here, in the caller's turn. */
export function statusError(status: StatusObject): FastSafetensorsError {
  return new FastSafetensorsError(status.code, status.message, status);
}

function isStatus(value: unknown): value is StatusObject {
  return (
    typeof value === 'object' && value !== null && !(value instanceof Error) && 'code' in value && 'message' in value
  );
}

/** Awaits a native promise and turns its rejection into the package's error. */
export async function settled<T>(promise: Promise<T>): Promise<T> {
  try {
    return await promise;
  } catch (error) {
    throw isStatus(error) ? statusError(error) : error;
  }
}

/** Calls a native function that throws status objects. */
export function checked<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw isStatus(error) ? statusError(error) : error;
  }
}

export async function readHeader(
  path: string,
  { allowTrailingBytes = false, opened }: { allowTrailingBytes?: boolean; opened?: NativeOpenedFiles },
): Promise<NativeHeader> {
  return settled(native().readHeader(path, allowTrailingBytes, opened));
}

export async function parseHeader(bytes: Uint8Array, options: { allowTrailingBytes?: boolean }): Promise<NativeHeader> {
  return settled(native().parseHeader(bytes, options.allowTrailingBytes ?? false));
}

/** What the whole process holds: all zero when everything is closed and disposed (and, for what was dropped without dispose, collected). */
export function nativeMetrics(): Metrics {
  return native().metrics();
}
