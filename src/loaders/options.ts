import * as check from '../base/checks.js';
import { CONVERTIBLE, type ConvertibleDType, DTYPE_BITS, type DTypeName, isConvertible } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { type CopierType, isBuiltin, isKnown, registeredCopiers } from '../copiers/registry.js';
import { Device, type DeviceString } from '../device/device.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import type { Framework } from '../device/framework.js';
import { type Files, listedFiles } from '../safetensors/files.js';
import type { TensorFrame } from '../safetensors/metadata.js';
import type { Progress } from '../transfer/progress.js';
import { checkDeviceMemoryLimit, checkMemoryLimit, type DeviceMemoryLimit, type MemoryLimit } from './budget.js';
import { checkDeviceRule, checkDevices, checkPlacement, type DeviceRule } from './placement.js';
import type { ProcessGroup } from './process-group.js';
import type { Split } from './split.js';

/**
 * Options of every loader. INVALID_ARGUMENT for a wrong value and for an unknown name; undefined means not given.
 *
 * A copier of your own gets all of them for its factory and carries out by itself what says how to read; see
 * registerCopier.
 */
export interface LoaderOptions<T = DeviceTensor> {
  /**
   * Where tensors go: 'cpu' (default), 'cuda' or 'cuda:N'; by name the first pattern that fits, in which `*` stands for
   * any text, as `{ 'model.layers.1*': 'cuda:1', '*': 'cuda:0' }`; or what a function says of each tensor, called once
   * for each, in the order of files and offsets. INVALID_ARGUMENT for a tensor that fits no pattern. Devices are loaded
   * at a time: docs/devices.md.
   */
  device?: DeviceRule;
  /** In place of `device`: the model is split among these, in this order, as `split` says. */
  devices?: readonly DeviceString[];
  /**
   * With `devices`: contiguous parts whose largest is as small as can be. 'layers' (default): layers stay whole and
   * follow each other by the numbers in names (`model.layers.7.`, `h.7.`, `blocks.7.`), embeddings before the first,
   * what belongs to no layer else behind the last; without such numbers as 'bytes'. 'bytes': tensors in the order of
   * files and offsets.
   */
  split?: Split;
  /**
   * What reads the files. 'auto' (default): '3fs' where all files are on one 3FS mount; else, for a GPU, 'gds' where
   * there is a direct path, 'unified' where it shares the host's memory; else 'nogds'. UNKNOWN_COPIER for a name that
   * is not registered.
   */
  copier?: CopierType;
  /**
   * The processes that share the model, as an object or from processGroupFromEnv(). Default, and for null: a group of
   * one. In a larger one the buffers of SafeTensorsFileLoader read what this rank asks for: docs/ranks.md. Other
   * loaders load the same for every rank.
   */
  pg?: ProcessGroup | null;
  /** Makes the framework's own tensors, such as onnxruntime(ort) or tfjs(tf). Default: tensors are DeviceTensors. */
  framework?: Framework<T>;
  /** Of a copier of your own: what its factory is given beside and over the other options. INVALID_ARGUMENT else. */
  copierOptions?: Readonly<Record<string, unknown>>;
  /** true: 'auto' never chooses 'gds', and copier: 'gds' is 'nogds'. Default: false. */
  nogds?: boolean;
  /** Memory that reads pass through lies on the NUMA node of the GPU; nothing on the host. Default: true. */
  setNuma?: boolean;
  /**
   * Debug lines go to the logger. Default: whether the environment has FASTSAFETENSORS_DEBUG, and not as 0, false, no
   * or off.
   */
  debugLog?: boolean;
  /** Where messages go. Default: console. */
  logger?: Logger;
  /**
   * '3fs': where 3FS is mounted; `~` and file: URLs are understood. Default, also where blank: the mount of the files.
   * NOT_3FS for files outside it.
   */
  mountPoint?: string | URL;
  /** '3fs': entries of the I/O ring, of which a quarter is in flight. Default: four for each read in flight. */
  entries?: number;
  /** '3fs': the most reads of one job, as n or -n; 0: all that are queued. Default, -1: each completes by itself. */
  ioDepth?: number;
  /** '3fs': bytes of the memory shared with 3FS, which is cut into staging slots. Default: 48 MiB. */
  bufferSize?: number;
  /**
   * '3fs': an object that reads in place of USRBIO, without any 3FS; see ChunkReader. INVALID_ARGUMENT where another
   * built-in copier reads, also if 'auto' chose it.
   */
  reader?: unknown;
  /**
   * 'nogds': ordinary reads take the place of a copier that is not available, and of '3fs' for files that are not on
   * 3FS, and the report says so ('unified' where the GPU shares the host's memory). Default, false: COPIER_UNAVAILABLE,
   * NOT_3FS.
   */
  fallback?: 'nogds' | false;
  /**
   * Bytes of one read that passes through a staging slot (bounce buffer). Default: 1 MiB for '3fs' and past the page
   * cache, else 4 MiB.
   */
  bounceBufferSize?: number;
  /**
   * Threads that read. Default: 4 to 16, by the CPUs; 16 past the page cache; 8 for 'gds'. Nothing to '3fs', which
   * reads without any.
   */
  maxThreads?: number;
  /**
   * Reads past the page cache (O_DIRECT). true: wherever the file system takes it, and the report says where it did
   * not; false: never; 'auto' (default): as FASTSAFETENSORS_ODIRECT says (1 or 0), else loads of 32 MiB and more of
   * which hardly anything is in the page cache (sampled; the kernel tells it of files that you own or may write to),
   * from the disks of this machine. Such reads are faster and leave the page cache as it is: a model that will be
   * loaded again soon is better loaded with false. They are made by io_uring where the kernel allows that (the report's
   * notes say where not; FASTSAFETENSORS_IO_URING=0 turns it off), else by threads. Nothing to '3fs' and 'gds', which
   * have no page cache.
   */
  odirect?: 'auto' | boolean;
  /**
   * Tensors in host memory are views of a private mapping of their file in place of copies: nothing is read that the
   * page cache has, processes share one copy, and what is written to a tensor stays in this process. A read lease makes
   * who opens the file for writing wait until this process has copied what it has of it: such a tensor never changes.
   * 'auto': files that a lease protects, or that cannot change, that are in memory, and that could be copied for a
   * writer in time and memory; true: also files that are not, or that no lease can protect (of another user, on a
   * network or an overlay), and the report says what protects each; false: none.
   * A page that the kernel evicts meanwhile is read again when it is touched, and the touch waits for the disk.
   * Copied are files that are open for writing, tensors that do not lie at a multiple of their dtype's size in their
   * file, what is converted, sliced, or read in another way than by plain reads, and for 'auto' less than 256 KiB of a
   * file. Default: 'auto'; with `framework` false, since a session that runs often gains more from huge pages.
   */
  mmap?: 'auto' | boolean;
  /**
   * 'always': every byte passes through staging slots, even if it could be read straight into place ('auto', default).
   * 'mapped', 'nogds' onto a GPU: the GPU copies from the page cache by itself, out of pages of the files that are
   * locked piece by piece. Converted and verified tensors, parts of tensors and short pieces pass through slots; so
   * does all where the GPU, the kernel or the file system cannot do that, and the report's notes say why. Not measured
   * on a GPU yet: docs/mapping.md. INVALID_ARGUMENT for a copier or reader of your own, which has neither;
   * 'mapped' also for tensors in host memory (see mmap), and with odirect or dropCache true.
   */
  staging?: 'auto' | 'always' | 'mapped';
  /** 'nogds', 'unified': the kernel drops each file from the page cache after its last read. Default: false. */
  dropCache?: boolean;
  /**
   * Converts floating tensors while they are loaded: F64, F32, F16, BF16, F8_E4M3, F8_E5M2 and the two FNUZ dtypes into
   * each other, with the values that PyTorch and ml_dtypes give: nearest even; what is above the largest value becomes
   * infinity, or NaN in F8_E4M3 and FNUZ, which have none. Integers, booleans and complex numbers stay. Default: none.
   * UNSUPPORTED_DTYPE for a floating tensor that cannot become this (F8_E8M0, F6, F4), unless dtypePolicy lets it stay,
   * and for a copier or reader of your own.
   */
  dtype?: ConvertibleDType;
  /** 'convertible': floating tensors that cannot become `dtype` stay as they are. Default: 'strict', an error. */
  dtypePolicy?: 'strict' | 'convertible';
  /** Which tensors are loaded; called once for each, in the order of files and offsets. Default: all. */
  filter?: (name: string, frame: TensorFrame) => boolean;
  /** Accepts bytes after a file's last tensor. Default: false, METADATA_INCOMPLETE_BUFFER. */
  allowTrailingBytes?: boolean;
  /**
   * Links are followed to regular files wherever they lead; names in an index or a model stay inside its folder in any
   * case. false: what an index or a model names must not be, after all links, outside its folder either, else
   * UNSAFE_SHARD_PATH. Default: true.
   */
  followLinks?: boolean;
  /** Of a folder, the files of this variant, as 'fp16' of `model.fp16.safetensors`; '' for those of none. */
  variant?: string;
  /**
   * 'decides' (default): tensors that an index does not name are left out, and one that lies in another shard than it
   * says is taken from there; the report's notes say so. 'strict': both are INVALID_INDEX. One that no shard has always
   * is.
   */
  index?: 'decides' | 'strict';
  /**
   * Whether tensors are compared with digests before they are handed out: those of `FILE.sums.json`, or of the header.
   * 'auto' (default): those that have one; 'require': all, and files of the hub's cache by the SHA-256 that their blobs
   * are named by; false: none. Bytes that have another digest, and with 'require' a tensor without one, are
   * CHECKSUM_MISMATCH. A digest says nothing of a part of a tensor: INVALID_ARGUMENT with 'require'. docs/checksums.md.
   */
  checksum?: 'auto' | 'require' | false;
  /**
   * What this loader may hold on its device at any time: bytes, or '80%' of the device's memory (of the host: of what
   * the control group of this process allows), or by device as `{ 'cuda:0': '80%' }`. Tensors that were handed out
   * count until their memory is free again, and so does staging on the device. Reading waits until there is room. What
   * can never have room is BUDGET_INFEASIBLE, and so is the next tensor for a consumer that holds all there is, while
   * nothing is in flight and nothing is disposed for a second: docs/budgets.md. Default: no limit.
   */
  deviceMemoryBudget?: DeviceMemoryLimit;
  /** The same for the host's memory: tensors there, or for a GPU the staging that reads pass through. */
  hostMemoryBudget?: MemoryLimit;
  /** Ends what is in progress when aborted: it rejects at once with the signal's reason. */
  signal?: AbortSignal;
  /**
   * Milliseconds that one load may take, from its first look at a file or folder on, else TIMEOUT: wall time, also
   * while the process is stopped. Of a SafeTensorsFileLoader it counts addFilenames() and the load after it, but not
   * the time between the two; of fastsafeOpen the opening, and each tensor by itself. Default: no limit.
   */
  timeoutMs?: number;
  /**
   * Milliseconds that one open, read or copy may take, else STALLED; so it is while folders and headers are looked at,
   * and none of these looks ends and no byte of a header comes for as long. close() waits as long for what is in
   * flight. Time in which the process is stopped (SIGSTOP, a debugger, `docker pause`) does not count. Default: 90,000.
   */
  stallTimeoutMs?: number;
  /** The most bytes a second that all loads of this loader read together. Default: no limit. */
  maxBytesPerSecond?: number;
  /**
   * Called about ten times a second during a load, for files and for all. What it throws ends the load, and so does
   * what a promise that it returns rejects with while the load goes on; nothing waits for such promises.
   */
  onProgress?: (progress: Progress) => void;
  /** true: draws a bar on stderr where that is a terminal. Default: false. */
  progress?: boolean;
}

/** Options that say which files and tensors a path means. */
export type FileOptions = Pick<LoaderOptions, 'followLinks' | 'variant' | 'index'>;

/** Options of loaders that stream a model: those of every loader, and how far ahead they load. */
export interface ParallelOptions<T = DeviceTensor> extends LoaderOptions<T> {
  /** A file, several, a folder, or an index of shards; docs/files.md says what a folder means. */
  files: Files;
  /** Batches that are loaded ahead of the one being yielded: n + 1. Default: 0; -1: none. */
  queueSize?: number;
  /**
   * Bytes of a batch in memory, cut at tensor boundaries; a larger tensor is a batch of its own. A tensor that is kept
   * holds its allocation, which is no larger than this, nor than 256 MiB. Default: 1 GiB.
   */
  maxBatchBytes?: number;
  /** 'file' (default): tensors come in the order of files and offsets; 'ready': as they arrive. */
  order?: 'file' | 'ready';
  /** true: a tensor is valid only until the next one is asked for, when its memory is released. Default: false. */
  borrow?: boolean;
}

const LOADER_CHECKS: Record<keyof LoaderOptions, check.Check> = {
  device: (value, name) => (typeof value === 'string' ? void Device.parse(value) : checkDeviceRule(value, name)),
  devices: checkDevices,
  split: check.oneOf('layers', 'bytes'),
  copier: (value, name) => {
    if (typeof value !== 'string' || value === '') check.fail(name, 'the name of a copier', value);
    if (value !== 'auto' && !isKnown(value)) {
      const known = ['auto', ...registeredCopiers()].join(', ');
      throw new FastSafetensorsError('UNKNOWN_COPIER', `${name}: "${value}" is not registered; there are ${known}`);
    }
  },
  pg: (value, name) => {
    const pg = value as ProcessGroup | null;
    if (pg === null) return;
    if (typeof pg !== 'object') check.fail(name, 'a process group { rank, size }', value);
    check.integer(1)(pg.size, 'pg.size');
    check.integer(0, pg.size - 1)(pg.rank, 'pg.rank');
    if (pg.localRank !== undefined) check.integer(0)(pg.localRank, 'pg.localRank');
    if (pg.broadcast !== undefined)
      check.methods('what nccl({ uniqueId }) gives', 'enter', 'close')(pg.broadcast, 'pg.broadcast');
  },
  framework: check.methods('a framework: onnxruntime(ort)', 'adopt'),
  copierOptions: (value, name) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) check.fail(name, 'an object', value);
  },
  nogds: check.boolean,
  setNuma: check.boolean,
  debugLog: check.boolean,
  logger: check.methods('an object with debug, info and warn', 'debug', 'info', 'warn'),
  mountPoint: (value, name) => {
    if (value !== '') check.pathOf(value, name);
  },
  entries: check.integer(1, 65536),
  ioDepth: check.integer(-65536, 65536),
  bufferSize: check.integer(4096),
  reader: check.methods('a reader with readChunked(path, destination, fileOffset, length)', 'readChunked'),
  fallback: check.oneOf('nogds', false),
  bounceBufferSize: check.integer(4096, 2 ** 30),
  maxThreads: check.integer(1, 1024),
  odirect: check.oneOf('auto', true, false),
  mmap: check.oneOf('auto', true, false),
  staging: check.oneOf('auto', 'always', 'mapped'),
  dropCache: check.boolean,
  dtype: (value, name) => {
    if (typeof value !== 'string' || !Object.hasOwn(DTYPE_BITS, value))
      check.fail(name, `one of ${Object.keys(DTYPE_BITS).join(', ')}`, value);
    if (!isConvertible(value as DTypeName)) {
      const message = `nothing can be converted to ${value} on the way, only to ${CONVERTIBLE.join(', ')}`;
      throw new FastSafetensorsError('UNSUPPORTED_DTYPE', `${name}: ${message}`);
    }
  },
  dtypePolicy: check.oneOf('strict', 'convertible'),
  filter: check.callback,
  allowTrailingBytes: check.boolean,
  followLinks: check.boolean,
  variant: check.text,
  index: check.oneOf('decides', 'strict'),
  checksum: check.oneOf('auto', 'require', false),
  deviceMemoryBudget: checkDeviceMemoryLimit,
  hostMemoryBudget: checkMemoryLimit,
  signal: (value, name) => {
    check.methods('an AbortSignal', 'throwIfAborted', 'addEventListener', 'removeEventListener')(value, name);
    if (typeof (value as AbortSignal).aborted !== 'boolean') check.fail(name, 'an AbortSignal', value);
  },
  timeoutMs: check.positive,
  stallTimeoutMs: check.positive,
  maxBytesPerSecond: check.positive,
  onProgress: check.callback,
  progress: check.boolean,
};

/** The largest queueSize. */
export const MOST_AHEAD = 65536;

/** Checks of what only loaders with `files` have. */
const PARALLEL_ONLY: Record<Exclude<keyof ParallelOptions, keyof LoaderOptions>, check.Check> = {
  files: () => {}, // checked by checkFiles() and resolveFiles()
  queueSize: check.integer(-1, MOST_AHEAD),
  maxBatchBytes: check.integer(1),
  order: check.oneOf('file', 'ready'),
  borrow: check.boolean,
};

/** Every option and its check. */
export const PARALLEL_CHECKS: Record<keyof ParallelOptions, check.Check> = { ...LOADER_CHECKS, ...PARALLEL_ONLY };

/**
 * Refuses what options demand of a copier that cannot do it, once it is known which copier reads. Other options that
 * say how to read are preferences: nothing to built-in copiers that have no such thing, as their comments say, and
 * given to the factories of others. `own`: an object of the user's reads. INVALID_ARGUMENT.
 */
export function checkDemands(options: LoaderOptions, copier: string, own: boolean): void {
  const { staging } = options;
  if (own && (staging === 'always' || staging === 'mapped')) {
    const needs = staging === 'always' ? 'needs staging slots' : 'needs reads of this package to take the place of';
    throw new InvalidArgumentError(
      `staging: '${staging}' ${needs}, and copier "${copier}" reads by an object of your own, without any; ` +
        "leave it out, or load with a built-in copier, such as 'nogds'",
    );
  }
  if (options.reader !== undefined && copier !== '3fs' && isBuiltin(copier)) {
    throw new InvalidArgumentError(
      `reader: only copier '3fs' reads through it, and '${copier}' would read these files; load with copier: '3fs', ` +
        'or leave reader out',
    );
  }
  if (options.copierOptions !== undefined && isBuiltin(copier)) {
    throw new InvalidArgumentError(
      `copierOptions: they are for a copier of your own, and '${copier}' would read these files; give built-in ` +
        'copiers their options beside copier',
    );
  }
}

/** Checks one option's value; `name` says whose it is. The codes of checkParallelOptions. */
export function checkOption(option: keyof ParallelOptions, value: unknown, name: string): void {
  PARALLEL_CHECKS[option](value, name);
}

/** For messages: who has the options that only loaders with `files` have. */
const OF_PARALLEL = {
  ...ownedBy('ParallelLoader', PARALLEL_ONLY),
  files: 'ParallelLoader (other loaders take files by addFilenames(files), fastsafeOpen as its first argument)',
};

/** Checks options of every loader; returns the checked copy. INVALID_ARGUMENT, UNKNOWN_COPIER, UNSUPPORTED_DTYPE. */
export function checkLoaderOptions<T>(options: LoaderOptions<T>): LoaderOptions<T> {
  const checked = check.checkOptions(options, LOADER_CHECKS, OF_PARALLEL);
  checkTogether(checked);
  return checked;
}

/** Checks what options mean together. INVALID_ARGUMENT. */
function checkTogether<T>(checked: LoaderOptions<T>): void {
  if (checked.devices !== undefined || checked.split !== undefined) checkPlacement(checked);
  if (checked.staging !== 'mapped') return;
  const { device = 'cpu', devices, odirect, dropCache } = checked;
  const other =
    device === 'cpu' && devices === undefined
      ? "the device is 'cpu', and nothing is staged on the way to host memory; use mmap: true for views of the files"
      : odirect === true
        ? 'odirect: true reads past it; leave one of the two out'
        : dropCache && 'dropCache: true takes files out of it; leave one of the two out';
  if (other) throw new InvalidArgumentError(`staging: 'mapped' copies from the page cache to a GPU, but ${other}`);
}

/** checkLoaderOptions() for loaders with `files`. */
export function checkParallelOptions<T>(options: ParallelOptions<T>): ParallelOptions<T> {
  const checked = check.checkOptions(checkFiles(options), PARALLEL_CHECKS);
  checkTogether(checked);
  return checked;
}

/** Checks that there are `files`; the copy has their list copied. INVALID_ARGUMENT. */
export function checkFiles<T>(options: ParallelOptions<T>): ParallelOptions<T> {
  const copy = check.plainCopy(options, 'options', 'an object with files');
  if (copy.files === undefined)
    throw new InvalidArgumentError('files: expected a path or an array of paths, found nothing');
  return { ...copy, files: listedFiles(copy.files) };
}

const { dtype, signal, onProgress } = LOADER_CHECKS;
const GET_CHECKS = { dtype, device: (value: unknown) => void Device.parse(value as string) };
/** Options of one load. */
export const COPY_CHECKS = { dtype, signal, onProgress, early: check.boolean };

/** What getTensor() makes of a tensor that is loaded, in place of what the load gave. */
export interface GetOptions {
  /** Floating tensors become this, as by the option of a load; others keep their dtype. */
  dtype?: ConvertibleDType;
  /** Where the tensor goes. */
  device?: DeviceString;
}

/** Checks options of getTensor(). INVALID_ARGUMENT, UNSUPPORTED_DTYPE. */
export function checkGetOptions(options: GetOptions): { dtype?: DTypeName; device?: Device } {
  const { dtype, device } = check.checkOptions(options, GET_CHECKS);
  return { dtype, ...(device !== undefined && { device: Device.parse(device) }) };
}

/** checkLoaderOptions() for copyFilesToDevice(). */
export function checkCopyOptions<T extends object>(options: T): T {
  return check.checkOptions(options, COPY_CHECKS, ownedBy("the loader's constructor", LOADER_CHECKS));
}

/** For checkOptions: who has these options. */
export function ownedBy(owner: string, checks: object): Record<string, string> {
  return Object.fromEntries(Object.keys(checks).map((name) => [name, owner]));
}
