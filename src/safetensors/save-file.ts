import { isUint8Array } from 'node:util/types';
import { writeAtomically } from '../base/atomic-write.js';
import * as check from '../base/checks.js';
import { DTYPE_BITS, type DTypeName } from '../base/dtype.js';
import { type ErrorCode, FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';

/** A tensor to be written by saveFile. */
export interface SaveTensor {
  /** Any well-formed text but `__metadata__`; each name once in a file. */
  readonly name: string;
  readonly dtype: DTypeName;
  /** Dimensions, outermost first, each an integer of 0 or more; [] for a scalar. */
  readonly shape: readonly number[];
  /**
   * The elements, row-major and little-endian: exactly product(shape) x bits / 8 bytes. They stay the caller's and must
   * not change until the promise settles.
   */
  readonly data: Uint8Array;
}

/** Options of saveFile. */
export interface SaveFileOptions {
  /** Texts by name, written as the header's `__metadata__`; default: none. */
  readonly metadata?: Readonly<Record<string, string>>;
}

const MAX_HEADER_LENGTH = 100_000_000;
/** The order of Dtype in safetensors/src/tensor.rs, by alignment: the format's writers begin with the highest rank. */
const RANKED_DTYPES = [
  ...['BOOL', 'F4', 'F6_E2M3', 'F6_E3M2', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0', 'F8_E4M3FNUZ', 'F8_E5M2FNUZ'],
  ...['I16', 'U16', 'F16', 'BF16', 'I32', 'U32', 'F32', 'C64', 'F64', 'I64', 'U64'],
] as const satisfies readonly DTypeName[];
type Ranks = Readonly<Record<(typeof RANKED_DTYPES)[number], number>>; // a dtype left out does not compile below
const DTYPE_RANKS = Object.fromEntries(RANKED_DTYPES.map((dtype, rank) => [dtype, rank])) as Ranks;

interface Item extends SaveTensor {
  readonly nameBytes: Buffer;
}

/**
 * Writes a .safetensors file byte for byte as the format's own writers do, except for the order of metadata, which is
 * random in theirs: tensors by dtype, those of wide elements first, then by name; the header padded with spaces to a
 * multiple of 8. Atomic: readers see the old file or the whole new one, and on failure `path` is unchanged.
 *
 * Rejects with UNKNOWN_DTYPE, TENSOR_INVALID_INFO (shape and data disagree), DUPLICATE_TENSOR, HEADER_TOO_LARGE,
 * IO_ERROR, or INVALID_ARGUMENT for what is no tensor, name, path or option; all but IO_ERROR before anything is
 * written.
 */
export async function saveFile(
  tensors: Iterable<SaveTensor>,
  file: string | URL,
  options: SaveFileOptions = {},
): Promise<void> {
  const path = check.pathOf(file, 'saveFile');
  const metadata = checkMetadata(options);
  const items = checkTensors(tensors, path).sort(
    (a, b) => DTYPE_RANKS[b.dtype] - DTYPE_RANKS[a.dtype] || Buffer.compare(a.nameBytes, b.nameBytes),
  );
  const header = encodeHeader(items, metadata, path);
  await writeAtomically(path, [header, ...items.map((item) => item.data)]);
}

const stringsByName: check.Check = (value, name) => {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    check.fail(name, 'an object of strings', value);
};

function checkMetadata(options: SaveFileOptions): [string, string][] | undefined {
  const { metadata } = check.checkOptions(options, { metadata: stringsByName });
  if (metadata === undefined) return undefined;
  const entries = Object.entries(metadata);
  for (const [key, value] of entries) {
    if (typeof value !== 'string') {
      throw new InvalidArgumentError(`saveFile: metadata ${shown(key)} is ${typeof value}, expected a string`);
    }
    if (!isWellFormed(key) || !isWellFormed(value)) {
      throw new InvalidArgumentError(`saveFile: metadata ${shown(key)} has a lone surrogate, which UTF-8 cannot hold`);
    }
  }
  return entries;
}

function checkTensors(tensors: unknown, path: string): Item[] {
  if (typeof tensors !== 'object' || tensors === null || !(Symbol.iterator in tensors)) {
    throw new InvalidArgumentError('saveFile: tensors must be an iterable of { name, dtype, shape, data }');
  }
  const names = new Set<string>();
  const items: Item[] = [];
  for (const tensor of tensors as Iterable<SaveTensor>) {
    const item = checkTensor(tensor, path);
    if (names.has(item.name)) {
      const message = `saveFile: tensor ${shown(item.name)} is given twice`;
      throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { path, tensor: item.name });
    }
    names.add(item.name);
    items.push(item);
  }
  return items;
}

function checkTensor(tensor: SaveTensor, path: string): Item {
  if (typeof tensor !== 'object' || tensor === null || typeof tensor.name !== 'string') {
    const expected = '{ name, dtype, shape, data } with a name that is a string';
    throw new InvalidArgumentError(`saveFile: each tensor must be ${expected}`);
  }
  const { name, dtype, shape, data } = tensor;
  const error = (code: ErrorCode, problem: string) =>
    new FastSafetensorsError(code, `saveFile: tensor ${shown(name)}: ${problem}`, { path, tensor: name });

  if (name === '__metadata__') throw error('INVALID_ARGUMENT', 'the format keeps this name for itself');
  if (!isWellFormed(name)) throw error('INVALID_ARGUMENT', 'its name has a lone surrogate, which UTF-8 cannot hold');
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BITS, dtype)) {
    throw error('UNKNOWN_DTYPE', `unknown dtype ${shown(dtype)}, expected one of ${Object.keys(DTYPE_BITS).join(' ')}`);
  }
  if (!Array.isArray(shape) || !shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    throw error('TENSOR_INVALID_INFO', `shape ${shown(shape)} is no array of integers that are not negative`);
  }
  if (!isUint8Array(data)) throw error('INVALID_ARGUMENT', 'data must be a Uint8Array');
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
  if (bits / 8n !== BigInt(data.byteLength)) {
    const found = `but data has ${data.byteLength}`;
    throw error('TENSOR_INVALID_INFO', `${described} takes ${bits / 8n} bytes, ${found}`);
  }
  return { name, dtype, shape: [...shape], data, nameBytes: Buffer.from(name) };
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
  for (const { name, dtype, shape, data } of items) {
    const end = begin + data.byteLength;
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
