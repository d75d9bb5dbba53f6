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

/** Makes each weight external data at its place. Constant nodes become initializers of their graph. */
export function pointOutside(model: Model, weights: readonly Weight[], places: readonly Place[]): void {
  dropWeightInputs(model);
  const entries = new Map<string, Uint8Array>();
  for (const [i, { tensor }] of weights.entries()) pointAt(tensor, places[i]!, entries);
  for (const [{ message }, indices] of byGraph(weights)) {
    const constants = indices.flatMap((i) => (weights[i]!.node ? [weights[i]!] : []));
    message.removeChildren(constants.map(({ node }) => node!));
    for (const { tensor, info } of constants) {
      tensor.remove(TENSOR.name);
      tensor.addBytes(TENSOR.name, info.name);
      message.addMessage(GRAPH.initializer, tensor);
    }
  }
}

/** Replaces a tensor's data, if it has any, by external data at a place. Tensors may share `entries`. */
export function pointAt(tensor: Message, place: Place, entries = new Map<string, Uint8Array>()): void {
  tensor.remove(...DATA_FIELDS);
  tensor.addBytes(TENSOR.externalData, entry('location', place.location, entries));
  tensor.addBytes(TENSOR.externalData, entry('offset', String(place.offset), entries));
  tensor.addBytes(TENSOR.externalData, entry('length', String(place.length), entries));
  tensor.addInteger(TENSOR.dataLocation, EXTERNAL);
}

function entry(key: string, value: string, entries: Map<string, Uint8Array>): Uint8Array {
  const known = entries.get(`${key} ${value}`);
  if (known) return known;
  const made = new Message();
  made.addBytes(ENTRY.key, key);
  made.addBytes(ENTRY.value, value);
  const bytes = made.encode();
  if (key !== 'offset') entries.set(`${key} ${value}`, bytes); // offsets differ
  return bytes;
}

/**
 * Makes each weight an input of the model's own graph, under its name in `names`; weights of one name are one input.
 * Inner graphs see it there; their references follow when the name changes.
 */
export function turnIntoInputs(model: Model, weights: readonly Weight[], names: readonly string[]): void {
  dropWeightInputs(model);
  for (const [graph, indices] of byGraph(weights)) {
    const { message } = graph;
    const now = new Map(indices.map((i) => [weights[i]!.info.name, names[i]!]));
    renameUses(graph, new Map([...now].filter(([before, after]) => after !== before)));
    message.removeChildren(indices.map((i) => weights[i]!.node ?? weights[i]!.tensor));
    message.removeWhere(GRAPH.valueInfo, VALUE_INFO.name, (name) => now.has(name));
    // An initializer that is an input, too, is a default that callers may override: it only loses the default.
    message.removeWhere(GRAPH.input, VALUE_INFO.name, (name) => now.has(name) && now.get(name) !== name);
  }
  const top = model.graph.message;
  const inputs = new Set(top.stringsIn(GRAPH.input, VALUE_INFO.name));
  for (const [i, { info }] of weights.entries()) {
    if (!inputs.has(names[i]!)) top.addBytes(GRAPH.input, valueInfo(names[i]!, info.dataType, info.shape).encode());
    inputs.add(names[i]!);
  }
}

/** The weights of each graph, by their indices. */
function byGraph(weights: readonly Weight[]): Map<Graph, number[]> {
  const groups = new Map<Graph, number[]>();
  for (const [i, { graph }] of weights.entries()) {
    const group = groups.get(graph);
    if (group) group.push(i);
    else groups.set(graph, [i]);
  }
  return groups;
}

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
  const initializers = new Set(top.stringsIn(GRAPH.initializer, TENSOR.name));
  top.removeWhere(GRAPH.input, VALUE_INFO.name, (name) => initializers.has(name));
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
