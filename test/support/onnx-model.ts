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

export function value(name: string, shape: readonly number[], type: number = TYPES.F32): Message {
  const dims = message({ [SHAPE.dim]: shape.map((dim) => message({ [DIM.value]: dim })) });
  return message({
    [VALUE_INFO.name]: name,
    [VALUE_INFO.type]: message({ [TYPE.tensor]: message({ [TENSOR_TYPE.elemType]: type, [TENSOR_TYPE.shape]: dims }) }),
  });
}

/** AttributeProto.AttributeType. */
const ATTRIBUTE_TYPE = { id: 20, tensor: 4, graph: 5 };

export function node(
  opType: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Record<string, { graph: Message } | { tensor: Message }> = {},
): Message {
  return message({
    [NODE.input]: inputs,
    [NODE.output]: outputs,
    [NODE.opType]: opType,
    [NODE.attribute]: Object.entries(attributes).map(([name, attribute]) =>
      'graph' in attribute
        ? message({
            [ATTRIBUTE.name]: name,
            [ATTRIBUTE.graph]: attribute.graph,
            [ATTRIBUTE_TYPE.id]: ATTRIBUTE_TYPE.graph,
          })
        : message({
            [ATTRIBUTE.name]: name,
            [ATTRIBUTE.tensor]: attribute.tensor,
            [ATTRIBUTE_TYPE.id]: ATTRIBUTE_TYPE.tensor,
          }),
    ),
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

/** Opset 13. The graph comes last, so that no proper prefix of the bytes is a model. */
export function model(parts: GraphParts, irVersion = 8): Uint8Array {
  const built = message({ [MODEL.irVersion]: irVersion, 8: message({ 2: 13 }) });
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
