import { Message } from '../../src/models/onnx/protobuf.js';
import {
  ATTRIBUTE,
  DIM,
  ENTRY,
  EXTERNAL,
  GRAPH,
  MODEL,
  NODE,
  SHAPE,
  TENSOR,
  TENSOR_TYPE,
  TYPE,
  VALUE_INFO,
} from '../../src/models/onnx/schema.js';

/**
 * Builds ONNX messages for tests: `message({ [NODE.opType]: 'Add', [NODE.input]: ['a', 'b'] })`. Arrays repeat a field.
 */
type Value = number | string | Uint8Array | Message;

export function message(fields: Record<number, Value | readonly Value[]>): Message {
  const built = new Message();
  for (const [key, values] of Object.entries(fields)) {
    const id = Number(key);
    for (const value of Array.isArray(values) ? (values as Value[]) : [values as Value]) {
      if (typeof value === 'number') built.addInteger(id, value);
      else if (value instanceof Message) built.addMessage(id, value);
      else built.addBytes(id, value);
    }
  }
  return built;
}

/** ONNX numbers of element types. */
export const TYPES = { F32: 1, I64: 7, BOOL: 9, F16: 10, F64: 11, BF16: 16, F8_E4M3: 17 } as const;

export const floats = (length: number, scale = 1) => Float32Array.from({ length }, (_, i) => scale * (i - length / 2));
export const bytesOf = (array: ArrayBufferView) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

export function tensor(
  name: string,
  shape: readonly number[],
  type: number,
  data: Record<number, Value | readonly Value[]>,
): Message {
  return message({ [TENSOR.dims]: shape, [TENSOR.dataType]: type, [TENSOR.name]: name, ...data });
}

export function rawTensor(name: string, shape: readonly number[], values: Float32Array): Message {
  return tensor(name, shape, TYPES.F32, { [TENSOR.rawData]: bytesOf(values) });
}

export function externalTensor(
  name: string,
  shape: readonly number[],
  entries: Record<string, string>,
  type: number = TYPES.F32,
): Message {
  return tensor(name, shape, type, {
    [TENSOR.externalData]: Object.entries(entries).map(([key, value]) =>
      message({ [ENTRY.key]: key, [ENTRY.value]: value }),
    ),
    [TENSOR.dataLocation]: EXTERNAL,
  });
}

/** A dimension that is a name is symbolic. */
export function value(name: string, shape: readonly (number | string)[], type: number = TYPES.F32): Message {
  const dimOf = (dim: number | string) => message({ [typeof dim === 'number' ? DIM.value : 2]: dim });
  const dims = message({ [SHAPE.dim]: shape.map(dimOf) });
  return message({
    [VALUE_INFO.name]: name,
    [VALUE_INFO.type]: message({ [TYPE.tensor]: message({ [TENSOR_TYPE.elemType]: type, [TENSOR_TYPE.shape]: dims }) }),
  });
}

/** An attribute's value: one of these. */
export type Attribute =
  | { readonly graph: Message }
  | { readonly tensor: Message }
  | { readonly int: number }
  | { readonly ints: readonly number[] }
  | { readonly float: number }
  | { readonly string: string };

/** AttributeProto: the field of each kind of value, and its AttributeType. */
const KINDS = {
  float: [2, 1],
  int: [3, 2],
  string: [4, 3],
  tensor: [ATTRIBUTE.tensor, 4],
  graph: [ATTRIBUTE.graph, 5],
  ints: [8, 7],
} as const;

function attributeOf(name: string, attribute: Attribute): Message {
  const [[kind, given]] = Object.entries(attribute) as [[keyof typeof KINDS, Value | readonly Value[]]];
  const [field, type] = KINDS[kind];
  const built = message({ [ATTRIBUTE.name]: name, 20: type, ...(kind !== 'float' && { [field]: given }) });
  if (kind !== 'float') return built;
  const fixed = Buffer.from([(field << 3) | 5, 0, 0, 0, 0]);
  fixed.writeFloatLE(given as number, 1);
  return new Message(Buffer.concat([built.encode(), fixed]));
}

export function node(
  opType: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Readonly<Record<string, Attribute>> = {},
  domain = '',
): Message {
  return message({
    [NODE.input]: inputs,
    [NODE.output]: outputs,
    [NODE.opType]: opType,
    [NODE.attribute]: Object.entries(attributes).map(([name, attribute]) => attributeOf(name, attribute)),
    [NODE.domain]: domain === '' ? [] : [domain],
  });
}

export interface GraphParts {
  nodes: readonly Message[];
  initializers?: readonly Message[];
  inputs?: readonly Message[];
  outputs: readonly Message[];
}

export function graph({ nodes, initializers = [], inputs = [], outputs }: GraphParts): Message {
  return message({
    2: 'g',
    [GRAPH.node]: nodes,
    [GRAPH.initializer]: initializers,
    [GRAPH.input]: inputs,
    [GRAPH.output]: outputs,
  });
}

/** What a model has beside its graph: versions of operators by domain, and functions. */
export interface ModelParts extends GraphParts {
  opsets?: Readonly<Record<string, number>>;
  functions?: readonly Message[];
}

/** Opset 13 unless told otherwise. The graph comes last, so that no proper prefix of the bytes is a model. */
export function model({ opsets = { '': 13 }, functions = [], ...parts }: ModelParts, irVersion = 8): Uint8Array {
  const imports = Object.entries(opsets).map(([domain, version]) => message({ 1: domain, 2: version }));
  const built = message({ [MODEL.irVersion]: irVersion, 8: imports, [MODEL.functions]: functions });
  built.addMessage(MODEL.graph, graph(parts));
  return built.encode();
}

/** `y = x + w` with 512 floats. */
export function addModel(w: Message, irVersion = 8, extraInputs: readonly Message[] = []): Uint8Array {
  return model(
    {
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [w],
      inputs: [value('x', [512]), ...extraInputs],
      outputs: [value('y', [512])],
    },
    irVersion,
  );
}
