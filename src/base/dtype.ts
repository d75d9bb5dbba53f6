/** Bits of one element by dtype, in the order of csrc/base/dtype.h. */
export const DTYPE_BITS = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  U16: 16,
  I16: 16,
  F16: 16,
  BF16: 16,
  U32: 32,
  I32: 32,
  F32: 32,
  U64: 64,
  I64: 64,
  F64: 64,
  C64: 64,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  F6_E2M3: 6,
  F6_E3M2: 6,
  F4: 4,
} as const;

/** A dtype of the safetensors format, in its spelling. */
export type DTypeName = keyof typeof DTYPE_BITS;

/** Dtypes by their number in the core. */
export const DTYPE_NAMES = Object.keys(DTYPE_BITS) as readonly DTypeName[];

/** The dtypes that a load can convert, each to each other, in csrc/convert/float_convert.cc. */
export const CONVERTIBLE = [
  'F16',
  'BF16',
  'F32',
  'F64',
  'F8_E5M2',
  'F8_E4M3',
  'F8_E4M3FNUZ',
  'F8_E5M2FNUZ',
] as const satisfies readonly DTypeName[];

/** What a floating tensor can become on the way: see the option `dtype`. */
export type ConvertibleDType = (typeof CONVERTIBLE)[number];

export function isConvertible(dtype: DTypeName): dtype is ConvertibleDType {
  return (CONVERTIBLE as readonly DTypeName[]).includes(dtype);
}

export function canConvert(from: DTypeName, to: DTypeName): boolean {
  return from !== to && isConvertible(from) && isConvertible(to);
}

/** Whether a dtype is real floating point, to which the option `dtype` applies: no integer, boolean or complex. */
export function isFloating(dtype: DTypeName): boolean {
  return dtype.startsWith('F') || dtype === 'BF16';
}

const ARRAYS = {
  I8: Int8Array,
  U16: Uint16Array,
  I16: Int16Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  U32: Uint32Array,
  I32: Int32Array,
  F32: Float32Array,
  U64: BigUint64Array,
  I64: BigInt64Array,
  F64: Float64Array,
  C64: Float32Array,
} as const;
export type TypedArrayConstructor = (typeof ARRAYS)[keyof typeof ARRAYS] | typeof Uint8Array;

/**
 * The typed array that elements of a dtype lie in: Uint16Array for 16-bit floats, Uint8Array for 8 bits and fewer,
 * pairs in a Float32Array for C64.
 */
export type TypedArrayOf<D extends DTypeName = DTypeName> = D extends keyof typeof ARRAYS
  ? (typeof ARRAYS)[D]['prototype']
  : Uint8Array;

/** The nearest typed array: see TypedArrayOf. */
export function typedArrayOf(dtype: DTypeName): TypedArrayConstructor {
  return (ARRAYS as Partial<Record<DTypeName, TypedArrayConstructor>>)[dtype] ?? Uint8Array;
}

/** What elements are by the typed array that they lie in. */
const DTYPE_OF_ARRAY: Readonly<Record<string, DTypeName>> = {
  Int8Array: 'I8',
  Uint8Array: 'U8',
  Uint8ClampedArray: 'U8',
  Int16Array: 'I16',
  Uint16Array: 'U16',
  Float16Array: 'F16',
  Int32Array: 'I32',
  Uint32Array: 'U32',
  Float32Array: 'F32',
  Float64Array: 'F64',
  BigInt64Array: 'I64',
  BigUint64Array: 'U64',
};

/** The dtype that the elements of a typed array are; undefined for a DataView. Not by instanceof: see jest's realms. */
export function dtypeOfArray(view: ArrayBufferView): DTypeName | undefined {
  return DTYPE_OF_ARRAY[(view as Uint8Array)[Symbol.toStringTag]];
}
