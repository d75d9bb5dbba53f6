/** Tensors to be written, checked. */
import { isMap } from 'node:util/types';
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

/** Who writes, and where, for messages. */
export interface SavePlace {
  readonly by: 'saveFile' | 'saveSharded' | 'exportHandle';
  readonly path: string;
}

/** The order of Dtype in safetensors/src/tensor.rs, by alignment: the format's writers begin with the highest rank. */
const RANKED_DTYPES = [
  ...['BOOL', 'F4', 'F6_E2M3', 'F6_E3M2', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0', 'F8_E4M3FNUZ', 'F8_E5M2FNUZ'],
  ...['I16', 'U16', 'F16', 'BF16', 'I32', 'U32', 'F32', 'C64', 'F64', 'I64', 'U64'],
] as const satisfies readonly DTypeName[];
type Ranks = Readonly<Record<(typeof RANKED_DTYPES)[number], number>>; // a dtype left out does not compile below
const DTYPE_RANKS = Object.fromEntries(RANKED_DTYPES.map((dtype, rank) => [dtype, rank])) as Ranks;

/** Bytes that are copied from a device at a time. */
const DEVICE_PIECE_BYTES = 16 * 1024 * 1024;

/** A tensor that was checked: its shape and dtype take `byteLength` bytes. */
export interface Item {
  readonly name: string;
  readonly nameBytes: Uint8Array;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly source: Uint8Array | SaveDeviceTensor;
}

type Named = Pick<Item, 'dtype' | 'nameBytes'>;

/** The order of data in a file, as the format's writers have it: wide elements first, then by name. */
export function byLayout(a: Named, b: Named): number {
  return DTYPE_RANKS[b.dtype] - DTYPE_RANKS[a.dtype] || Buffer.compare(a.nameBytes, b.nameBytes);
}

/** The bytes of a tensor, some at a time. A piece is valid until the next is asked for. */
export async function* piecesOf({ source, byteLength }: Item): AsyncGenerator<Uint8Array, void, void> {
  if (ArrayBuffer.isView(source)) return yield source;
  for (let offset = 0; offset < byteLength; offset += DEVICE_PIECE_BYTES)
    yield await source.toHost({ offset, length: Math.min(DEVICE_PIECE_BYTES, byteLength - offset) });
}

/**
 * The tensors of a list, or of a record or Map by their names. UNKNOWN_DTYPE, TENSOR_INVALID_INFO, DUPLICATE_TENSOR,
 * CLOSED or INVALID_ARGUMENT.
 */
export function checkTensors(tensors: unknown, place: SavePlace): Item[] {
  const { by, path } = place;
  if (typeof tensors !== 'object' || tensors === null || ArrayBuffer.isView(tensors)) {
    throw new InvalidArgumentError(
      `${by}: tensors must be an iterable of DeviceTensors or { name, dtype, shape, data }, or such by name`,
    );
  }
  const names = new Set<string>();
  const items: Item[] = [];
  const add = (name: unknown, tensor: unknown): void => {
    const item = checkTensor(name, tensor, place);
    if (names.has(item.name)) {
      const message = `${by}: tensor ${shown(item.name)} is given twice`;
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

/** One tensor; as checkTensors(), but for tensors that are given twice. */
export function checkTensor(name: unknown, tensor: unknown, { by, path }: SavePlace): Item {
  if (typeof tensor !== 'object' || tensor === null || typeof name !== 'string') {
    const expected = 'a DeviceTensor or { name, dtype, shape, data }, with a name that is a string';
    const which = typeof name === 'string' ? `tensor ${shown(name)}` : 'each tensor';
    throw new InvalidArgumentError(`${by}: ${which} must be ${expected}`);
  }
  const error = (code: ErrorCode, problem: string) =>
    new FastSafetensorsError(code, `${by}: tensor ${shown(name)}: ${problem}`, { path, tensor: name });
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

/** A value as messages show it: long texts and arrays are cut, and nothing is asked of objects, which could refuse. */
export function shown(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value);
  if (Array.isArray(value)) {
    const items = value.slice(0, 16).map((item) => (typeof item === 'object' ? typeof item : String(item)));
    return `[${items.join(', ')}${value.length > 16 ? ', …' : ''}]`;
  }
  return check.describe(value);
}

/** Whether UTF-8 can hold a text. */
export function isWellFormed(text: string): boolean {
  return !/\p{Surrogate}/u.test(text);
}
