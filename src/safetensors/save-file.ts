import { isMap } from 'node:util/types';
import { writeAtomically } from '../base/atomic-write.js';
import * as check from '../base/checks.js';
import { DTYPE_BITS, type DTypeName, dtypeOfArray, typedArrayOf } from '../base/dtype.js';
import { type ErrorCode, FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';

/** Elements in memory of the caller's, to be written by saveFile. */
export interface SaveArray {
  /** Any well-formed text but `__metadata__`; each name once in a file. Left out where a record gives it. */
  readonly name?: string;
  /** Default: that of the typed array's elements, as F32 of a Float32Array. */
  readonly dtype?: DTypeName;
  /** Dimensions, outermost first, each an integer of 0 or more; [] for a scalar. */
  readonly shape: readonly number[];
  /**
   * The elements, row-major and little-endian, exactly product(shape) x bits / 8: as bytes (Uint8Array, DataView),
   * or in the typed array that DeviceTensor.data has for this dtype. They stay the caller's and must not change until
   * the promise settles.
   */
  readonly data: ArrayBufferView;
}

/** What saveFile uses of a DeviceTensor, which must not be disposed until the promise settles. */
export interface SaveDeviceTensor {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly disposed: boolean;
  toHost(range: { offset: number; length: number }): Promise<Uint8Array>;
}

/** A tensor to be written by saveFile: elements in memory, or a DeviceTensor on any device. */
export type SaveTensor = SaveArray | SaveDeviceTensor;

/** Options of saveFile. */
export interface SaveFileOptions {
  /** Texts by name, written as the header's `__metadata__`; default: none. */
  readonly metadata?: Readonly<Record<string, string>> | ReadonlyMap<string, string>;
}

const MAX_HEADER_LENGTH = 100_000_000;
/** The order of Dtype in safetensors/src/tensor.rs, by alignment: the format's writers begin with the highest rank. */
const RANKED_DTYPES = [
  ...['BOOL', 'F4', 'F6_E2M3', 'F6_E3M2', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0', 'F8_E4M3FNUZ', 'F8_E5M2FNUZ'],
  ...['I16', 'U16', 'F16', 'BF16', 'I32', 'U32', 'F32', 'C64', 'F64', 'I64', 'U64'],
] as const satisfies readonly DTypeName[];
type Ranks = Readonly<Record<(typeof RANKED_DTYPES)[number], number>>; // a dtype left out does not compile below
const DTYPE_RANKS = Object.fromEntries(RANKED_DTYPES.map((dtype, rank) => [dtype, rank])) as Ranks;

/** Bytes that are copied from a device at a time. */
const DEVICE_PIECE_BYTES = 16 * 1024 * 1024;

interface Item {
  readonly name: string;
  readonly nameBytes: Buffer;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly source: Uint8Array | SaveDeviceTensor;
}

/**
 * Writes a .safetensors file byte for byte as the format's own writers do, except for the order of metadata, which is
 * random in theirs: tensors by dtype, those of wide elements first, then by name; the header padded with spaces to a
 * multiple of 8. Atomic: readers see the old file or the whole new one, and on failure `path` is unchanged. An existing
 * file keeps its mode; of a link, what it leads to is written.
 *
 * `tensors`: a list, or a record or Map by names, which are those that are written. Rejects with UNKNOWN_DTYPE,
 * TENSOR_INVALID_INFO (shape and data disagree), DUPLICATE_TENSOR, HEADER_TOO_LARGE, IO_ERROR (also for a path where a
 * folder, device, pipe or socket is), CLOSED and CUDA_ERROR of DeviceTensors, or INVALID_ARGUMENT for what is no
 * tensor, name, path or option.
 */
export async function saveFile(
  tensors: Iterable<SaveTensor> | Readonly<Record<string, SaveTensor>> | ReadonlyMap<string, SaveTensor>,
  file: string | URL,
  options: SaveFileOptions = {},
): Promise<void> {
  check.takesAtMost(3, arguments, 'saveFile');
  const path = check.pathOf(file, 'saveFile');
  const metadata = checkMetadata(options);
  const items = checkTensors(tensors, path).sort(
    (a, b) => DTYPE_RANKS[b.dtype] - DTYPE_RANKS[a.dtype] || Buffer.compare(a.nameBytes, b.nameBytes),
  );
  const header = encodeHeader(items, metadata, path);
  await writeAtomically(path, piecesOf(header, items));
}

async function* piecesOf(header: Buffer, items: readonly Item[]): AsyncGenerator<Uint8Array, void, void> {
  yield header;
  for (const { source, byteLength } of items) {
    if (ArrayBuffer.isView(source)) {
      yield source;
      continue;
    }
    for (let offset = 0; offset < byteLength; offset += DEVICE_PIECE_BYTES)
      yield await source.toHost({ offset, length: Math.min(DEVICE_PIECE_BYTES, byteLength - offset) });
  }
}

function checkMetadata(options: SaveFileOptions): [string, string][] | undefined {
  const { metadata } = check.checkOptions(options, { metadata: () => {} });
  if (metadata === undefined) return undefined;
  const entries = check.entriesOf<string, string>(metadata, 'metadata', 'an object or a Map of strings');
  for (const [key, value] of entries) {
    if (typeof key !== 'string' || typeof value !== 'string') {
      throw new InvalidArgumentError(`saveFile: metadata ${shown(key)} is ${typeof value}, expected a string`);
    }
    if (!isWellFormed(key) || !isWellFormed(value)) {
      throw new InvalidArgumentError(`saveFile: metadata ${shown(key)} has a lone surrogate, which UTF-8 cannot hold`);
    }
  }
  return entries;
}

function checkTensors(tensors: unknown, path: string): Item[] {
  if (typeof tensors !== 'object' || tensors === null || ArrayBuffer.isView(tensors)) {
    throw new InvalidArgumentError(
      'saveFile: tensors must be an iterable of DeviceTensors or { name, dtype, shape, data }, or such by name',
    );
  }
  const names = new Set<string>();
  const items: Item[] = [];
  const add = (name: unknown, tensor: unknown): void => {
    const item = checkTensor(name, tensor, path);
    if (names.has(item.name)) {
      const message = `saveFile: tensor ${shown(item.name)} is given twice`;
      throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { path, tensor: item.name });
    }
    names.add(item.name);
    items.push(item);
  };
  if (isMap(tensors)) {
    for (const [name, tensor] of tensors) add(name, tensor);
  } else if (Symbol.iterator in tensors) {
    for (const tensor of tensors as Iterable<SaveTensor | null>) add(tensor?.name, tensor);
  } else {
    for (const [name, tensor] of Object.entries(tensors)) add(name, tensor);
  }
  return items;
}

function checkTensor(name: unknown, tensor: unknown, path: string): Item {
  if (typeof tensor !== 'object' || tensor === null || typeof name !== 'string') {
    const expected = 'a DeviceTensor or { name, dtype, shape, data }, with a name that is a string';
    const which = typeof name === 'string' ? `tensor ${shown(name)}` : 'each tensor';
    throw new InvalidArgumentError(`saveFile: ${which} must be ${expected}`);
  }
  const error = (code: ErrorCode, problem: string) =>
    new FastSafetensorsError(code, `saveFile: tensor ${shown(name)}: ${problem}`, { path, tensor: name });
  if (name === '__metadata__') throw error('INVALID_ARGUMENT', 'the format keeps this name for itself');
  if (!isWellFormed(name)) throw error('INVALID_ARGUMENT', 'its name has a lone surrogate, which UTF-8 cannot hold');

  const { shape } = tensor as SaveTensor;
  const { dtype, source } = isDeviceTensor(tensor)
    ? { dtype: tensor.dtype, source: tensor }
    : elementsOf(tensor, error);
  if (isDeviceTensor(source) && source.disposed) throw error('CLOSED', 'it was disposed');
  const { byteLength } = source;
  if (!Array.isArray(shape) || !shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    throw error('TENSOR_INVALID_INFO', `shape ${shown(shape)} is no array of integers that are not negative`);
  }
  const described = `shape [${shape.join(', ')}] of ${dtype}`;
  let bits = BigInt(DTYPE_BITS[dtype]);
  for (const size of shape) {
    bits *= BigInt(size);
    // Readers check so, too: a later dimension of 0 must not hide the overflow.
    if (bits >= 2n ** 64n) throw error('TENSOR_INVALID_INFO', `${described} overflows 64 bits`);
  }
  if (bits % 8n !== 0n) {
    throw error('TENSOR_INVALID_INFO', `${described} takes ${bits} bits, which is no whole number of bytes`);
  }
  if (bits / 8n !== BigInt(byteLength)) {
    throw error('TENSOR_INVALID_INFO', `${described} takes ${bits / 8n} bytes, but data has ${byteLength}`);
  }
  return { name, nameBytes: Buffer.from(name), dtype, shape: [...shape], byteLength, source };
}

function isDeviceTensor(tensor: object): tensor is SaveDeviceTensor {
  return typeof (tensor as SaveDeviceTensor).toHost === 'function';
}

/** The bytes of elements in memory, and what they are. */
function elementsOf(
  tensor: object,
  error: (code: ErrorCode, problem: string) => Error,
): { dtype: DTypeName; source: Uint8Array } {
  const { dtype: given, data } = tensor as { dtype?: DTypeName; data?: Uint8Array | DataView };
  if (!ArrayBuffer.isView(data)) throw error('INVALID_ARGUMENT', 'data must be a typed array or a DataView');
  const kind = data[Symbol.toStringTag];
  const said = dtypeOfArray(data);
  const dtype = given === undefined ? said : given;
  if (dtype === undefined) throw error('INVALID_ARGUMENT', `dtype is missing, and a ${kind} does not say it`);
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BITS, dtype)) {
    throw error('UNKNOWN_DTYPE', `unknown dtype ${shown(dtype)}, expected one of ${Object.keys(DTYPE_BITS).join(' ')}`);
  }
  const nearest = typedArrayOf(dtype).name;
  if (kind !== nearest && kind !== 'Uint8Array' && kind !== 'DataView' && said !== dtype) {
    throw error('INVALID_ARGUMENT', `data is a ${kind}, expected a ${nearest} for ${dtype}, or bytes in a Uint8Array`);
  }
  return { dtype, source: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) };
}

/** The 8 bytes of the length, and the padded text. HEADER_TOO_LARGE. */
function encodeHeader(items: readonly Item[], metadata: [string, string][] | undefined, path: string): Buffer {
  const parts: string[] = [];
  let characters = 0; // counted so far: no string is built that could not be written
  const add = (text: string, list: string[]): void => {
    characters += text.length + 1;
    if (characters > MAX_HEADER_LENGTH) throw tooLarge(path);
    list.push(text);
  };
  if (metadata) {
    const members: string[] = [];
    for (const [key, value] of metadata) add(`${quote(key, path)}:${quote(value, path)}`, members);
    parts.push(`"__metadata__":{${members.join(',')}}`);
  }
  let begin = 0;
  for (const { name, dtype, shape, byteLength } of items) {
    const end = begin + byteLength;
    const entry = `{"dtype":"${dtype}","shape":[${shape.join(',')}],"data_offsets":[${begin},${end}]}`;
    add(`${quote(name, path)}:${entry}`, parts);
    begin = end;
  }
  const text = `{${parts.join(',')}}`;
  const padded = Math.ceil(Buffer.byteLength(text) / 8) * 8;
  if (padded > MAX_HEADER_LENGTH) throw tooLarge(path, String(padded));
  const header = Buffer.alloc(8 + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded), 0);
  header.write(text, 8);
  return header;
}

/** A text as JSON. HEADER_TOO_LARGE when that is too long for a header, or with its escapes even for a string. */
function quote(text: string, path: string): string {
  if (text.length <= MAX_HEADER_LENGTH) {
    try {
      const quoted = JSON.stringify(text);
      if (quoted.length <= MAX_HEADER_LENGTH) return quoted;
    } catch {
      // longer than a string can be
    }
  }
  throw tooLarge(path);
}

function tooLarge(path: string, bytes = `more than ${MAX_HEADER_LENGTH}`): FastSafetensorsError {
  const most = `expected at most ${MAX_HEADER_LENGTH}; write several files`;
  return new FastSafetensorsError('HEADER_TOO_LARGE', `saveFile: the header takes ${bytes} bytes, ${most}`, { path });
}

/** A value as messages show it: long texts and arrays are cut, and nothing is asked of objects, which could refuse. */
function shown(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value);
  if (Array.isArray(value)) {
    const items = value.slice(0, 16).map((item) => (typeof item === 'object' ? typeof item : String(item)));
    return `[${items.join(', ')}${value.length > 16 ? ', …' : ''}]`;
  }
  return check.describe(value);
}

function isWellFormed(text: string): boolean {
  return !/\p{Surrogate}/u.test(text);
}
