import { DTYPE_BITS, type DTypeName } from '../../src/base/dtype.js';

// biome-ignore lint/suspicious/noExplicitAny: ort's overloaded signatures would tie users to one version of its types.
export type Loose = any;

/** An element type of ONNX Runtime's JavaScript. */
export interface ElementType {
  /** ort's name. */
  readonly type: string;
  /** ONNX's number, of TensorProto.DataType. */
  readonly number: number;
  readonly array: new (buffer: ArrayBuffer) => ArrayBufferView;
  /** Whether a tensor of location 'gpu-buffer' may have it. */
  readonly onDevice: boolean;
  /** safetensors' name; none for what safetensors lacks. */
  readonly dtype?: DTypeName;
}

// 16-bit floats as Uint16Array: where JavaScript has a Float16Array, ort.Tensor makes one of it itself.
const ELEMENT_TYPES: readonly ElementType[] = [
  { type: 'float32', number: 1, array: Float32Array, onDevice: true, dtype: 'F32' },
  { type: 'uint8', number: 2, array: Uint8Array, onDevice: true, dtype: 'U8' },
  { type: 'int8', number: 3, array: Int8Array, onDevice: false, dtype: 'I8' },
  { type: 'uint16', number: 4, array: Uint16Array, onDevice: false, dtype: 'U16' },
  { type: 'int16', number: 5, array: Int16Array, onDevice: false, dtype: 'I16' },
  { type: 'int32', number: 6, array: Int32Array, onDevice: true, dtype: 'I32' },
  { type: 'int64', number: 7, array: BigInt64Array, onDevice: true, dtype: 'I64' },
  { type: 'bool', number: 9, array: Uint8Array, onDevice: true, dtype: 'BOOL' },
  { type: 'float16', number: 10, array: Uint16Array, onDevice: true, dtype: 'F16' },
  { type: 'float64', number: 11, array: Float64Array, onDevice: false, dtype: 'F64' },
  { type: 'uint32', number: 12, array: Uint32Array, onDevice: true, dtype: 'U32' },
  { type: 'uint64', number: 13, array: BigUint64Array, onDevice: false, dtype: 'U64' },
  { type: 'uint4', number: 21, array: Uint8Array, onDevice: true },
  { type: 'int4', number: 22, array: Uint8Array, onDevice: true }, // by its declaration, an Int8Array is refused
];

export const STRING_TYPE = 8;

const BY_TYPE = new Map(ELEMENT_TYPES.map((element) => [element.type, element]));
const BY_NUMBER = new Map(ELEMENT_TYPES.map((element) => [element.number, element]));
const BY_DTYPE = new Map(ELEMENT_TYPES.map((element) => [element.dtype, element]));

/** Numbers of dtypes that a model can be fed, but that JavaScript has no tensor type for. */
const MORE_NUMBERS: Partial<Record<DTypeName, number>> = {
  BF16: 16,
  F8_E4M3: 17,
  F8_E4M3FNUZ: 18,
  F8_E5M2: 19,
  F8_E5M2FNUZ: 20,
  F4: 23,
};

export const elementOfType = (type: string): ElementType | undefined => BY_TYPE.get(type);
export const elementOfNumber = (number: number): ElementType | undefined => BY_NUMBER.get(number);
/** ort's type for a dtype; undefined where its JavaScript has none. */
export const elementOfDType = (dtype: DTypeName): ElementType | undefined => BY_DTYPE.get(dtype);
/** ONNX's number for a dtype; undefined for those that ONNX Runtime cannot be given. */
export const numberOfDType = (dtype: DTypeName): number | undefined =>
  BY_DTYPE.get(dtype)?.number ?? MORE_NUMBERS[dtype];

const BITS = new Map<number, number>([
  [21, 4], // uint4, int4: two in a byte
  [22, 4],
]);
for (const [dtype, bits] of Object.entries(DTYPE_BITS)) {
  const number = numberOfDType(dtype as DTypeName);
  if (number !== undefined) BITS.set(number, bits);
}
/** Bits of an element; undefined for strings and for types that this package does not know. */
export const bitsOfNumber = (number: number): number | undefined => BITS.get(number);

const MORE_NAMES: Readonly<Record<number, string>> = {
  16: 'bfloat16',
  17: 'float8e4m3fn',
  18: 'float8e4m3fnuz',
  19: 'float8e5m2',
  20: 'float8e5m2fnuz',
  23: 'float4e2m1',
};

/** ONNX's number of a name that typeName() gives; undefined for other names. */
export function numberOfName(name: string): number | undefined {
  const more = Object.entries(MORE_NAMES).find(([, own]) => own === name);
  return BY_TYPE.get(name)?.number ?? (more && Number(more[0]));
}

/** The name of an element type in messages and metadata. */
export function typeName(number: number): string {
  if (number === STRING_TYPE) return 'string';
  return BY_NUMBER.get(number)?.type ?? MORE_NAMES[number] ?? `type ${number}`;
}
