/** The graphs of an ONNX model, and the weights in them. */
import { isFloating } from '../../base/dtype.js';
import { FastSafetensorsError } from '../../base/errors.js';
import { Message } from './protobuf.js';
import { ATTRIBUTE, FUNCTION, GRAPH, MODEL, NODE, TENSOR, VALUE_INFO } from './schema.js';
import { describeTensor, type TensorInfo, typedDataField } from './tensor-proto.js';

/** A deeper nesting of graphs is no model but an attack on the stack. */
const MAX_DEPTH = 64;

/** A tensor of the model, where it is, and whether it can be lifted. */
export interface Weight {
  readonly info: TensorInfo;
  readonly tensor: Message;
  readonly graph: Graph;
  /** The Constant node that holds it; undefined for an initializer. */
  readonly node: Message | undefined;
  /** Why it stays in the model; undefined when it is lifted. */
  readonly stays: string | undefined;
}

/** A graph with the graphs in the attributes of its nodes. `path` is '' for the model's own graph. */
export interface Graph {
  readonly path: string;
  readonly message: Message;
  readonly nodes: readonly Message[];
  readonly inner: ReadonlyMap<Message, readonly Graph[]>;
}

/** A parsed model; its graphs and weights point into `message`, and edits to them change it. */
export interface Model {
  readonly path: string;
  readonly message: Message;
  readonly graph: Graph;
  /** All tensors in initializers and Constant nodes, in file order; those of an inner graph after the node it is in. */
  readonly weights: readonly Weight[];
}

/**
 * Parses a model and finds its weights. `minBytes`: smaller tensors stay. Throws INVALID_ARGUMENT or UNEXPECTED_EOF for
 * what is no ONNX model, TENSOR_INVALID_INFO for impossible tensors.
 */
export function parseModel(bytes: Uint8Array, path: string, minBytes: number): Model {
  const invalid = (what: string) => new FastSafetensorsError('INVALID_ARGUMENT', `${path}: ${what}`, { path });
  const message = new Message(bytes, path);
  const root = message.child(MODEL.graph);
  if (root === undefined || message.integer(MODEL.irVersion) === undefined) {
    throw invalid('no ONNX model: expected an ir_version and a graph');
  }
  const weights: Weight[] = [];
  const graph = walk(root, '', 0);
  for (const body of message.children(MODEL.functions)) {
    const graph = { path: `function ${body.string(FUNCTION.name)}`, message: body, nodes: [], inner: new Map() };
    for (const node of body.children(FUNCTION.node)) constant(node, graph, true);
  }
  return { path, message, graph, weights };

  function walk(graphMessage: Message, at: string, depth: number): Graph {
    if (depth > MAX_DEPTH) throw invalid(`graphs are nested deeper than ${MAX_DEPTH}`);
    const nodes = graphMessage.children(GRAPH.node);
    const inner = new Map<Message, readonly Graph[]>();
    const here: Graph = { path: at, message: graphMessage, nodes, inner };
    for (const tensor of graphMessage.children(GRAPH.initializer))
      add(tensor, here, undefined, describeTensor(tensor, path));
    for (const node of nodes) {
      constant(node, here, false);
      const graphs = node.children(NODE.attribute).flatMap((attribute) =>
        [...attribute.children(ATTRIBUTE.graph), ...attribute.children(ATTRIBUTE.graphs)].map((body, index) => {
          const name = node.string(NODE.name) || node.string(NODE.opType);
          return walk(body, `${at}/${name}.${attribute.string(ATTRIBUTE.name)}${index || ''}`, depth + 1);
        }),
      );
      if (graphs.length > 0) inner.set(node, graphs);
    }
    return here;
  }

  function constant(node: Message, here: Graph, inFunction: boolean) {
    if (node.string(NODE.opType) !== 'Constant' || !['', 'ai.onnx'].includes(node.string(NODE.domain))) return;
    for (const attribute of node.children(NODE.attribute)) {
      const tensor = attribute.string(ATTRIBUTE.name) === 'value' ? attribute.child(ATTRIBUTE.tensor) : undefined;
      if (tensor) add(tensor, here, node, describeTensor(tensor, path, node.string(NODE.output)), inFunction);
    }
  }

  function add(tensor: Message, here: Graph, node: Message | undefined, info: TensorInfo, inFunction = false) {
    const stays = inFunction ? 'inside a function' : reasonToStay(tensor, here, node, info, minBytes);
    weights.push({ info, tensor, graph: here, node, stays });
  }
}

/** Names that a graph itself defines: its inputs, initializers and node outputs. */
export function definedNames(graph: Graph): string[] {
  return [
    ...graph.message.children(GRAPH.input).map((value) => value.string(VALUE_INFO.name)),
    ...graph.message.children(GRAPH.initializer).map((tensor) => tensor.string(TENSOR.name)),
    ...graph.nodes.flatMap((node) => node.strings(NODE.output)),
  ].filter((name) => name !== '');
}

export function outputNames(graph: Graph): string[] {
  return graph.message.children(GRAPH.output).map((value) => value.string(VALUE_INFO.name));
}

/** Why a tensor stays in the model; undefined when it can be lifted. */
function reasonToStay(
  tensor: Message,
  graph: Graph,
  node: Message | undefined,
  info: TensorInfo,
  minBytes: number,
): string | undefined {
  if (info.name === '') return 'has no name';
  if (info.dtype === undefined) return `safetensors has no dtype for ONNX type ${info.dataType}`;
  // Runtimes read no shapes from external data while loading: these are moved whatever their type and size.
  if (!info.external) {
    if (!isFloating(info.dtype)) return 'no floating type';
    if (info.byteLength < minBytes) return `below the floor of ${minBytes} bytes`;
    if (tensor.has(TENSOR.segment)) return 'stored in segments';
    if (!tensor.has(TENSOR.rawData) && typedDataField(info.dtype) === undefined) return 'has no raw_data';
  }
  // A runtime may refuse to return an initializer, or an outer graph's value, as a graph's output.
  if (outputNames(graph).includes(info.name))
    return node || graph.path !== '' ? 'is an output of its graph' : undefined;
  return undefined;
}
