import {
  boolean,
  type Check,
  type Checks,
  callback,
  checkOptions,
  fail,
  integer,
  methods,
  oneOf,
  positive,
  text,
} from '../base/checks.js';
import { CONVERSION_TARGETS, DTYPE_BITS, type DTypeName } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { type CopierType, isBuiltin, registeredCopiers } from '../copiers/registry.js';
import { Device, type DeviceString } from '../device/device.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import type { Framework } from '../device/framework.js';
import type { TensorFrame } from '../safetensors/metadata.js';
import type { Files } from '../safetensors/shards.js';
import type { Progress } from '../transfer/progress.js';
import type { ProcessGroup } from './process-group.js';

export type { Logger };

export interface LoaderOptions<T = DeviceTensor> {
  /** Where tensors go; 'cpu' by default. */
  device?: DeviceString;
  /** 'auto' (default): what suits the device and the files best. */
  copier?: CopierType;
  pg?: ProcessGroup;
  framework?: Framework<T>;
  /** Never use GPUDirect Storage. */
  nogds?: boolean;
  setNuma?: boolean;
  debugLog?: boolean;
  logger?: Logger;
  /** 3fs: where 3FS is mounted; that of the files when empty. */
  mountPoint?: string;
  /** 3fs: of the I/O ring. A quarter of it is in flight. */
  entries?: number;
  /** 3fs: reads that 3FS may take as one job, all that are queued with 0; -1 (default) completes each on its own. */
  ioDepth?: number;
  /** Bytes of the 3FS reader's shared buffer. */
  bufferSize?: number;
  /** 3fs: reads in place of the built-in reader; see ChunkReader. */
  reader?: unknown;
  /** 3fs: 'nogds' reads files that are not on 3FS as ordinary ones, and the report says so. */
  fallback?: 'nogds' | false;
  /** Bytes of one read that passes through a staging slot. */
  bounceBufferSize?: number;
  /** Threads that read. */
  maxThreads?: number;
  /** Read past the page cache: 'auto' (default) decides, true insists where the file system takes it. */
  odirect?: 'auto' | boolean;
  /** 'always' sends every byte through staging slots, also where it could go straight into place. */
  staging?: 'auto' | 'always';
  /** Ask the kernel to forget each file's pages after it was read. */
  dropCache?: boolean;
  /**
   * Convert floating tensors on the way: F32, F16 and BF16 into each other, F64 into F32, F8_E4M3 and F8_E5M2 into F16, BF16 and F32, rounding to nearest even.
   * Integers, booleans and complex numbers stay as they are. UNSUPPORTED_DTYPE for a floating tensor that cannot become this.
   */
  dtype?: DTypeName;
  filter?: (name: string, frame: TensorFrame) => boolean;
  allowTrailingBytes?: boolean;
  signal?: AbortSignal;
  /** Of the whole load, milliseconds. */
  timeoutMs?: number;
  /** An open, read or copy that takes longer is STALLED; milliseconds, 90,000. */
  stallTimeoutMs?: number;
  maxBytesPerSecond?: number;
  onProgress?: (progress: Progress) => void;
  /** Draws a bar on stderr. */
  progress?: boolean;
}

export interface ParallelOptions<T = DeviceTensor> extends LoaderOptions<T> {
  files: Files;
  /** Batches that may be loaded ahead: -1 none (one batch in memory), 0 (default) one, n n + 1. */
  queueSize?: number;
  /** Bytes of a batch, cut at tensor boundaries; 1 GiB. */
  maxBatchBytes?: number;
  deviceMemoryBudget?: number | `${number}%`;
  /** 'file' (default): the order of files and offsets; 'ready': as tensors arrive. */
  order?: 'file' | 'ready';
  /** A tensor is only valid until the next one is asked for: its memory is given back then. */
  borrow?: boolean;
}

const LOADER_CHECKS: Record<keyof LoaderOptions, Check> = {
  device: (value) => void Device.parse(value as string),
  copier: (value, name) => {
    if (typeof value !== 'string' || value === '') fail(name, 'the name of a copier', value);
    if (value !== 'auto' && !registeredCopiers().includes(value)) {
      throw new FastSafetensorsError(
        'UNKNOWN_COPIER',
        `copier: "${value}" is not registered; there are ${['auto', ...registeredCopiers()].join(', ')}`,
      );
    }
  },
  pg: (value, name) => {
    const pg = value as ProcessGroup | null;
    if (typeof pg !== 'object' || pg === null) fail(name, 'a process group { rank, size }', value);
    integer(1)(pg.size, 'pg.size');
    integer(0, pg.size - 1)(pg.rank, 'pg.rank');
    if (pg.size > 1) {
      throw new InvalidArgumentError(
        `pg: ${pg.size} ranks are not supported by this version yet, expected a group of one; give each process its own files`,
      );
    }
  },
  framework: methods('a framework: onnxruntime(ort)', 'adopt'),
  nogds: boolean,
  setNuma: boolean,
  debugLog: boolean,
  logger: methods('an object with debug, info and warn', 'debug', 'info', 'warn'),
  mountPoint: text,
  entries: integer(1, 65536),
  ioDepth: integer(-65536, 65536),
  bufferSize: integer(4096),
  reader: methods('a reader with readChunked(path, destination, fileOffset, length)', 'readChunked'),
  fallback: oneOf('nogds', false),
  bounceBufferSize: integer(4096, 2 ** 30),
  maxThreads: integer(1, 1024),
  odirect: oneOf('auto', true, false),
  staging: oneOf('auto', 'always'),
  dropCache: boolean,
  dtype: (value, name) => {
    if (typeof value !== 'string' || !Object.hasOwn(DTYPE_BITS, value))
      fail(name, `one of ${Object.keys(DTYPE_BITS).join(', ')}`, value);
    if (!CONVERSION_TARGETS.includes(value as DTypeName)) {
      throw new FastSafetensorsError(
        'UNSUPPORTED_DTYPE',
        `${name}: nothing can be converted to ${value} on the way, only to ${CONVERSION_TARGETS.join(', ')}`,
      );
    }
  },
  filter: callback,
  allowTrailingBytes: boolean,
  signal: (value, name) => {
    methods('an AbortSignal', 'throwIfAborted', 'addEventListener', 'removeEventListener')(value, name);
    if (typeof (value as AbortSignal).aborted !== 'boolean') fail(name, 'an AbortSignal', value);
  },
  timeoutMs: positive,
  stallTimeoutMs: positive,
  maxBytesPerSecond: positive,
  onProgress: callback,
  progress: boolean,
};

export const PARALLEL_CHECKS: Record<keyof ParallelOptions, Check> = {
  ...LOADER_CHECKS,
  files: () => {}, // checked by resolveFiles
  queueSize: integer(-1, 65536),
  maxBatchBytes: integer(1),
  deviceMemoryBudget: (value, name) => {
    const percent = typeof value === 'string' ? Number(/^(\d+(?:\.\d+)?)%$/.exec(value)?.[1]) : Number.NaN;
    const valid =
      typeof value === 'string' ? percent > 0 && percent <= 100 : Number.isSafeInteger(value) && (value as number) > 0;
    if (!valid) fail(name, "a number of bytes or a percentage like '80%'", value);
    throw new InvalidArgumentError(
      `${name}: budgets are not supported by this version yet; use maxBatchBytes and queueSize to bound what is loaded ahead`,
    );
  },
  order: oneOf('file', 'ready'),
  borrow: boolean,
};

/**
 * Refuses what was demanded and the copier that reads cannot do. Of the options that say how to read, a copier of the user's
 * own gets all and decides by itself, and a built-in one ignores those that have no meaning for it, such as maxThreads for
 * '3fs'; but nobody may think that these were carried out. INVALID_ARGUMENT. `own`: an object of the user's reads.
 */
export function checkDemands(options: LoaderOptions, copier: string, own: boolean): void {
  if (own && options.staging === 'always') {
    throw new InvalidArgumentError(
      `staging: 'always' is for staging slots, and copier "${copier}" reads by an object of your own, which has none; ` +
        `leave it out, or load with a built-in copier, such as 'nogds'`,
    );
  }
  if (options.reader !== undefined && copier !== '3fs' && isBuiltin(copier)) {
    throw new InvalidArgumentError(
      `reader: only copier '3fs' reads through it, and '${copier}' would read these files; load with copier: '3fs', ` +
        'or leave reader out',
    );
  }
  if (options.nogds === true && copier === 'gds' && isBuiltin(copier)) {
    throw new InvalidArgumentError("nogds: it forbids what copier: 'gds' asks for; leave one of them out");
  }
}

/** Options of a load as a whole that only loaders with `files` have. */
const PARALLEL_ONLY = Object.fromEntries(
  Object.keys(PARALLEL_CHECKS)
    .filter((name) => !Object.hasOwn(LOADER_CHECKS, name))
    .map((name) => [
      name,
      name === 'files'
        ? 'ParallelLoader (other loaders take files by addFilenames(files), fastsafeOpen as its first argument)'
        : 'ParallelLoader',
    ]),
);

/** This and the next return the copy that was checked. */
export function checkLoaderOptions<T>(options: LoaderOptions<T>): LoaderOptions<T> {
  return checkOptions(options, LOADER_CHECKS as Checks, PARALLEL_ONLY);
}

export function checkParallelOptions<T>(options: ParallelOptions<T>): ParallelOptions<T> {
  if (typeof options !== 'object' || options === null) fail('options', 'an object with files', options);
  const checked = checkOptions(options, PARALLEL_CHECKS as Checks);
  if (checked.files === undefined)
    throw new InvalidArgumentError('files: expected a path or an array of paths, found nothing');
  return checked;
}

/** Of createCopierConstructor for a copier of this package: it takes what a loader would hand on, its own options whole. */
export function checkCopierOptions<T extends object>(options: T): T {
  return checkOptions(options, PARALLEL_CHECKS as Checks);
}

export const COPY_CHECKS: Checks = {
  dtype: LOADER_CHECKS.dtype,
  signal: LOADER_CHECKS.signal,
  onProgress: LOADER_CHECKS.onProgress,
};

/** Of copyFilesToDevice. */
export function checkCopyOptions<T extends object>(options: T): T {
  return checkOptions(options, COPY_CHECKS, ownedBy("the loader's constructor", LOADER_CHECKS));
}

/** For checkOptions: who has these options. */
export function ownedBy(owner: string, checks: object): Record<string, string> {
  return Object.fromEntries(Object.keys(checks).map((name) => [name, owner]));
}
