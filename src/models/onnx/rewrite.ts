/** Edits of a parsed ONNX model: its weights become external data or inputs. */
import { definedNames, type Graph, type Model, type Weight } from './graph.js';
import { Message } from './protobuf.js';
import {
  ANNOTATION,
  DIM,
  ENTRY,
  EXTERNAL,
  GRAPH,
  IR_VERSION_WITHOUT_INPUTS,
  MODEL,
  NODE,
  SHAPE,
  TENSOR,
  TENSOR_TYPE,
  TYPE,
  VALUE_INFO,
} from './schema.js';

/** Where a lifted tensor is in the weights file: bytes from the file's start. */
interface Place {
  readonly location: string;
  readonly offset: number;
  readonly length: number;
}

/** Makes each weight external data in the weights file. Constant nodes become initializers of their graph. */
export function pointOutside(model: Model, weights: readonly Weight[], place: (weight: Weight) => Place): void {
  dropWeightInputs(model);
  for (const weight of weights) pointAt(weight.tensor, place(weight));
  for (const [graph, constants] of byGraph(weights.filter(({ node }) => node))) {
    graph.message.removeChildren(new Set(constants.map(({ node }) => node!)));
    for (const { tensor, info } of constants) {
      tensor.remove(TENSOR.name);
      tensor.addBytes(TENSOR.name, info.name);
      graph.message.addBytes(GRAPH.initializer, tensor.encode());
    }
  }
}

/** Replaces a tensor's data, if it has any, by external data at a place. */
export function pointAt(tensor: Message, { location, offset, length }: Place): void {
  tensor.remove(...DATA_FIELDS);
  for (const [key, value] of Object.entries({ location, offset, length })) {
    const entry = new Message();
    entry.addBytes(ENTRY.key, key);
    entry.addBytes(ENTRY.value, String(value));
    tensor.addMessage(TENSOR.externalData, entry);
  }
  tensor.addInteger(TENSOR.dataLocation, EXTERNAL);
}

/**
 * Makes each weight an input of the model's own graph, under the name that `inputName` gives. Inner graphs see it
 * there; their references follow when the name changes.
 */
export function turnIntoInputs(model: Model, weights: readonly Weight[], inputName: (weight: Weight) => string): void {
  dropWeightInputs(model);
  for (const [graph, own] of byGraph(weights)) {
    const renamed = new Map(own.map((weight) => [weight.info.name, inputName(weight)]));
    renameUses(graph, new Map([...renamed].filter(([before, after]) => after !== before)));
    const described = graph.message.children(GRAPH.valueInfo).filter((value) => renamed.has(nameOf(value)));
    graph.message.removeChildren(new Set([...own.map(({ node, tensor }) => node ?? tensor), ...described]));
  }
  const top = model.graph.message;
  const inputs = new Map(top.children(GRAPH.input).map((value) => [nameOf(value), value]));
  const dropped = new Set<Message>();
  for (const weight of weights) {
    const name = inputName(weight);
    const { name: before, dataType, shape } = weight.info;
    // An initializer that is an input, too, is a default that callers may override: it only loses the default.
    const own = weight.graph === model.graph ? inputs.get(before) : undefined;
    if (own && name !== before) dropped.add(own);
    if (inputs.has(name)) continue;
    const input = valueInfo(name, dataType, shape);
    top.addMessage(GRAPH.input, input);
    inputs.set(name, input);
  }
  top.removeChildren(dropped);
}

function byGraph(weights: readonly Weight[]): Map<Graph, Weight[]> {
  const groups = new Map<Graph, Weight[]>();
  for (const weight of weights) {
    const group = groups.get(weight.graph);
    if (group) group.push(weight);
    else groups.set(weight.graph, [weight]);
  }
  return groups;
}

const nameOf = (value: Message): string => value.string(VALUE_INFO.name);

/** Puts external data into the model, for a tensor that cannot be lifted: its file is not beside the new model. */
export function bringInside(tensor: Message, bytes: Uint8Array): void {
  tensor.remove(...DATA_FIELDS);
  tensor.addBytes(TENSOR.rawData, bytes);
}

/** Every field that holds a tensor's data or tells where they are. */
const DATA_FIELDS = [
  TENSOR.floatData,
  TENSOR.int32Data,
  TENSOR.stringData,
  TENSOR.int64Data,
  TENSOR.rawData,
  TENSOR.doubleData,
  TENSOR.uint64Data,
  TENSOR.externalData,
  TENSOR.dataLocation,
];

/**
 * Takes initializers out of the inputs of a model of an old IR version, and raises the version. Old versions want each
 * initializer among the inputs, where it is a constant all the same; newer ones let callers override such an input.
 */
function dropWeightInputs(model: Model): void {
  const { message } = model;
  if (message.integer(MODEL.irVersion)! >= IR_VERSION_WITHOUT_INPUTS) return;
  message.remove(MODEL.irVersion);
  message.addInteger(MODEL.irVersion, IR_VERSION_WITHOUT_INPUTS);
  const top = model.graph.message;
  const initializers = new Set(top.children(GRAPH.initializer).map((tensor) => tensor.string(TENSOR.name)));
  top.removeChildren(new Set(top.children(GRAPH.input).filter((value) => initializers.has(nameOf(value)))));
}

/** Renames each use of values in a graph and in those inside it, up to inner graphs that define a name anew. */
function renameUses(graph: Graph, names: ReadonlyMap<string, string>): void {
  if (names.size === 0) return;
  const rename = (name: string) => names.get(name) ?? name;
  for (const annotation of graph.message.children(GRAPH.quantization))
    annotation.mapStrings(ANNOTATION.tensorName, rename);
  for (const node of graph.nodes) {
    node.mapStrings(NODE.input, rename);
    for (const inner of graph.inner.get(node) ?? []) renameUses(inner, without(names, definedNames(inner)));
  }
}

function without(names: ReadonlyMap<string, string>, defined: readonly string[]): ReadonlyMap<string, string> {
  if (!defined.some((name) => names.has(name))) return names;
  const left = new Map(names);
  for (const name of defined) left.delete(name);
  return left;
}

function valueInfo(name: string, dataType: number, shape: readonly number[]): Message {
  const dims = new Message();
  for (const size of shape) {
    const dim = new Message();
    dim.addInteger(DIM.value, size);
    dims.addMessage(SHAPE.dim, dim);
  }
  const tensorType = new Message();
  tensorType.addInteger(TENSOR_TYPE.elemType, dataType);
  tensorType.addMessage(TENSOR_TYPE.shape, dims);
  const type = new Message();
  type.addMessage(TYPE.tensor, tensorType);
  const value = new Message();
  value.addBytes(VALUE_INFO.name, name);
  value.addMessage(VALUE_INFO.type, type);
  return value;
}
