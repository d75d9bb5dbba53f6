/** Every error code of the package, in the order of csrc/base/status.h. */
export const ERROR_CODES = [
  'HEADER_TOO_SMALL',
  'HEADER_TOO_LARGE',
  'INVALID_HEADER_LENGTH',
  'INVALID_HEADER',
  'DUPLICATE_KEY',
  'UNKNOWN_DTYPE',
  'INVALID_OFFSET',
  'TENSOR_INVALID_INFO',
  'METADATA_INCOMPLETE_BUFFER',
  'UNEXPECTED_EOF',
  'SHORT_READ',
  'IO_ERROR',
  'FILE_CHANGED',
  'UNKNOWN_TENSOR',
  'DUPLICATE_TENSOR',
  'MISSING_SHARD',
  'UNSAFE_SHARD_PATH',
  'INVALID_INDEX',
  'NO_FILES',
  'UNKNOWN_COPIER',
  'COPIER_UNAVAILABLE',
  'DEVICE_UNAVAILABLE',
  'PLATFORM_UNSUPPORTED',
  'OUT_OF_DEVICE_MEMORY',
  'OUT_OF_HOST_MEMORY',
  'BUDGET_INFEASIBLE',
  'CUDA_ERROR',
  'GDS_ERROR',
  'NOT_3FS',
  'THREEFS_DISCONNECTED',
  'THREEFS_ERROR',
  'STALLED',
  'TIMEOUT',
  'CHECKSUM_MISMATCH',
  'UNSUPPORTED_DTYPE',
  'CLOSED',
  'INVALID_ARGUMENT',
  'ORT_ERROR',
  'NOT_SAFETENSORS',
  'ADDON_MISSING',
] as const;

/** A stable name of what went wrong. Messages may change, codes do not. */
export type ErrorCode = (typeof ERROR_CODES)[number];

/** Where an error happened, as far as that is known. */
export interface ErrorPlace {
  path?: string;
  tensor?: string;
  /** Bytes from the start of the file. */
  offset?: number;
  cause?: unknown;
}

// `instanceof` goes by this symbol, so that it holds between the CommonJS and the ES entry and between jest's realms.
const BRAND = Symbol.for('fastsafetensors-node.error');

/** The error class of the package. A wrong argument is also a TypeError: see InvalidArgumentError. */
export class FastSafetensorsError extends Error {
  readonly code: ErrorCode;
  /** The file concerned. */
  declare readonly path?: string;
  /** The name of the tensor concerned. */
  declare readonly tensor?: string;
  /** Bytes from the start of the file. */
  declare readonly offset?: number;

  constructor(code: ErrorCode, message: string, place: ErrorPlace = {}) {
    super(message, place.cause === undefined ? undefined : { cause: place.cause });
    this.name = 'FastSafetensorsError';
    this.code = code;
    if (place.path !== undefined) this.path = place.path;
    if (place.tensor !== undefined) this.tensor = place.tensor;
    if (place.offset !== undefined) this.offset = place.offset;
    Object.defineProperty(this, BRAND, { value: true });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && BRAND in value;
  }
}

/** The 3FS mount whose lost daemon explains that a system call failed with this error; '' for other causes. */
type Explain = (path: string, errno: string) => string;
let deadThreeFs: Explain = () => '';

/** Lets the addon explain errors of the system. */
export function explainErrorsBy(explain: Explain): void {
  deadThreeFs = explain;
}

/**
 * IO_ERROR: `cannot <action> <path>`, and why; THREEFS_DISCONNECTED where the daemon of a 3FS is gone. An error of the
 * package's own, such as ADDON_MISSING, is about no file, and stays what it is.
 */
export function ioError(action: string, path: string, cause: unknown): FastSafetensorsError {
  if (cause instanceof FastSafetensorsError) return cause;
  const { code, message } = cause as NodeJS.ErrnoException;
  const mount = typeof code === 'string' ? deadThreeFs(path, code) : '';
  const why = mount && `; the 3FS mount ${mount} has lost its daemon: restart hf3fs_fuse and load again`;
  const place = { path, cause };
  return new FastSafetensorsError(
    mount ? 'THREEFS_DISCONNECTED' : 'IO_ERROR',
    `cannot ${action} ${path}: ${message}${why}`,
    place,
  );
}

/** A wrong option or argument: a TypeError, and an instance of FastSafetensorsError with the code INVALID_ARGUMENT. */
export class InvalidArgumentError extends TypeError {
  readonly code = 'INVALID_ARGUMENT' as const;

  declare readonly tensor?: string;

  constructor(message: string, place: Pick<ErrorPlace, 'tensor'> = {}) {
    super(message);
    if (place.tensor !== undefined) this.tensor = place.tensor;
    Object.defineProperty(this, BRAND, { value: true });
  }
}
