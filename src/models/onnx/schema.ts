/** What of the ONNX schema is used here: field numbers and dtypes. */
import { DTYPE_BITS, type DTypeName } from '../../base/dtype.js';

/** Field numbers of the ONNX messages that are read or written here (onnx/onnx.proto of ONNX 1.19, IR version 12). */
export const MODEL = { irVersion: 1, graph: 7, functions: 25 } as const;
export const GRAPH = { node: 1, initializer: 5, input: 11, output: 12, valueInfo: 13, quantization: 14 } as const;
export const NODE = { input: 1, output: 2, name: 3, opType: 4, attribute: 5, domain: 7 } as const;
export const FUNCTION = { name: 1, node: 7 } as const;
export const ATTRIBUTE = { name: 1, tensor: 5, graph: 6, graphs: 11 } as const;
export const TENSOR = {
  dims: 1,
  dataType: 2,
  segment: 3,
  floatData: 4,
  int32Data: 5,
  stringData: 6,
  int64Data: 7,
  name: 8,
  rawData: 9,
  doubleData: 10,
  uint64Data: 11,
  externalData: 13,
  dataLocation: 14,
} as const;
export const ENTRY = { key: 1, value: 2 } as const;
export const VALUE_INFO = { name: 1, type: 2 } as const;
export const TYPE = { tensor: 1 } as const;
export const TENSOR_TYPE = { elemType: 1, shape: 2 } as const;
export const SHAPE = { dim: 1 } as const;
export const DIM = { value: 1 } as const;
export const ANNOTATION = { tensorName: 1 } as const;

/** TensorProto.DataLocation. */
export const EXTERNAL = 1;

/** Before this IR version every initializer also had to be an input of its graph. */
export const IR_VERSION_WITHOUT_INPUTS = 4;

/** TensorProto.DataType by number, and its safetensors name. Strings and PACKED have none. */
const DTYPES: Readonly<Record<number, DTypeName>> = {
  1: 'F32',
  2: 'U8',
  3: 'I8',
  4: 'U16',
  5: 'I16',
  6: 'I32',
  7: 'I64',
  9: 'BOOL',
  10: 'F16',
  11: 'F64',
  12: 'U32',
  13: 'U64',
  14: 'C64',
  16: 'BF16',
  17: 'F8_E4M3',
  18: 'F8_E4M3FNUZ',
  19: 'F8_E5M2',
  20: 'F8_E5M2FNUZ',
  23: 'F4',
  24: 'F8_E8M0',
};

/** Types that safetensors lacks: names, and bits of an element. Those below 8 share bytes, the first one lowest. */
const PACKED: Readonly<Record<number, readonly [name: string, bits: number]>> = {
  15: ['complex128', 128],
  21: ['uint4', 4],
  22: ['int4', 4],
  25: ['uint2', 2],
  26: ['int2', 2],
};

/** The dtype of a TensorProto.DataType; undefined for those that safetensors cannot express. */
export function dtypeOf(dataType: number): DTypeName | undefined {
  return DTYPES[dataType];
}

/** The bits of an element; undefined for strings and unknown types. */
export function bitsOfType(dataType: number): number | undefined {
  const dtype = DTYPES[dataType];
  return dtype ? DTYPE_BITS[dtype] : PACKED[dataType]?.[1];
}

/** What messages, and names of packed tensors, call a type. */
export function nameOfType(dataType: number): string {
  return PACKED[dataType]?.[0] ?? DTYPES[dataType]?.toLowerCase() ?? `type${dataType}`;
}
