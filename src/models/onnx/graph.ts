/** The graphs of an ONNX model, and the weights in them. */
import { isFloating } from '../../base/dtype.js';
import { FastSafetensorsError } from '../../base/errors.js';
import { otherFormat } from '../../safetensors/other-format.js';
import { isOrtFormat } from './model-file.js';
import { Message } from './protobuf.js';
import { ATTRIBUTE, FUNCTION, GRAPH, MODEL, NODE, TENSOR, VALUE_INFO } from './schema.js';
import { describeTensor, type TensorInfo } from './tensor-proto.js';

/** Bytes: no shape is as large. Runtimes read shapes, axes and the like while they load, but not from files. */
export const MAX_SHAPE_BYTES = 64 * 1024;

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

/** A graph with the graphs in the attributes of its nodes. `path`: unique, '' for the model's own graph. */
export interface Graph {
  readonly path: string;
  readonly message: Message;
  readonly nodes: readonly Message[];
  readonly inner: ReadonlyMap<Message, readonly Graph[]>;
  /** Names of its outputs. */
  readonly outputs: ReadonlySet<string>;
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
  if (isOrtFormat(bytes)) {
    throw invalid(
      'a model in ORT format, which keeps its weights to itself; expected ONNX: take the .onnx that it was made from ' +
        '(createSession takes this one as it is, without weights)',
    );
  }
  let message: Message;
  let root: Message | undefined;
  try {
    message = new Message(bytes, path);
    root = message.child(MODEL.graph);
    if (root === undefined || message.integer(MODEL.irVersion) === undefined) {
      throw invalid('no ONNX model: expected an ir_version and a graph');
    }
  } catch (error) {
    const format = otherFormat(bytes, 'onnx');
    throw format === undefined ? error : invalid(`expected an ONNX model, but it is ${format}`);
  }
  const weights: Weight[] = [];
  const graph = walk(root, '', 0, false);
  for (const body of message.children(MODEL.functions)) {
    const path = `function ${body.string(FUNCTION.name)}`;
    const nodes = body.children(FUNCTION.node);
    visit({ path, message: body, nodes, inner: new Map(), outputs: new Set() }, 0, true);
  }
  return { path, message, graph, weights };

  function walk(graphMessage: Message, at: string, depth: number, inFunction: boolean): Graph {
    if (depth > MAX_DEPTH) throw invalid(`graphs are nested deeper than ${MAX_DEPTH}`);
    const nodes = graphMessage.children(GRAPH.node);
    const outputs = new Set(graphMessage.stringsIn(GRAPH.output, VALUE_INFO.name));
    const inner = new Map<Message, readonly Graph[]>();
    const here: Graph = { path: at, message: graphMessage, nodes, inner, outputs };
    for (const tensor of graphMessage.children(GRAPH.initializer))
      add(tensor, here, undefined, describeTensor(tensor, path), inFunction);
    for (const [node, graphs] of visit(here, depth, inFunction)) inner.set(node, graphs);
    return here;
  }

  /** Adds the Constants of a graph, and walks the graphs in its nodes, which it returns. */
  function visit(here: Graph, depth: number, inFunction: boolean): Map<Message, readonly Graph[]> {
    const inner = new Map<Message, readonly Graph[]>();
    const paths = new Map<string, number>(); // nodes may have one name, or none
    for (const node of here.nodes) {
      constant(node, here, inFunction);
      const graphs = node.children(NODE.attribute).flatMap((attribute) =>
        [...attribute.children(ATTRIBUTE.graph), ...attribute.children(ATTRIBUTE.graphs)].map((body, index) => {
          const name = node.string(NODE.name) || node.string(NODE.opType);
          const path = `${here.path}/${name}.${attribute.string(ATTRIBUTE.name)}${index || ''}`;
          const count = (paths.get(path) ?? 0) + 1;
          paths.set(path, count);
          return walk(body, count > 1 ? `${path}#${count}` : path, depth + 1, inFunction);
        }),
      );
      if (graphs.length > 0) inner.set(node, graphs);
    }
    return inner;
  }

  function constant(node: Message, here: Graph, inFunction: boolean) {
    if (node.string(NODE.opType) !== 'Constant' || !['', 'ai.onnx'].includes(node.string(NODE.domain))) return;
    // It should have one; ONNX Runtime takes the first.
    const [attribute] = node.children(NODE.attribute);
    const tensor = attribute?.string(ATTRIBUTE.name) === 'value' ? attribute.child(ATTRIBUTE.tensor) : undefined;
    if (tensor) add(tensor, here, node, describeTensor(tensor, path, node.string(NODE.output)), inFunction);
  }

  function add(tensor: Message, here: Graph, node: Message | undefined, info: TensorInfo, inFunction: boolean) {
    const stays = inFunction ? 'inside a function' : reasonToStay(tensor, here, node, info, minBytes);
    weights.push({ info, tensor, graph: here, node, stays });
  }
}

/** Names that a graph itself defines: its inputs, initializers and node outputs. */
export function definedNames(graph: Graph): string[] {
  return [
    ...graph.message.stringsIn(GRAPH.input, VALUE_INFO.name),
    ...graph.message.stringsIn(GRAPH.initializer, TENSOR.name),
    ...graph.nodes.flatMap((node) => node.strings(NODE.output)),
  ].filter((name) => name !== '');
}

/** Whether a tensor has to be in the model: a runtime may refuse an initializer as the output of an inner graph. */
export function isReturned({ graph, info, node }: Pick<Weight, 'graph' | 'info' | 'node'>): boolean {
  return graph.outputs.has(info.name) && (node !== undefined || graph.path !== '');
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
  // Invalid UTF-8 is decoded to U+FFFD: several names would be one. ONNX Runtime's API ends a name at a NUL.
  if (/[\0\ufffd]/.test(info.name)) return 'has a name with bytes that are no text';
  if (info.bits === undefined) return `safetensors has no dtype for ONNX type ${info.dataType}`;
  if (info.byteLength === 0) return 'has no elements';
  // Those in files of their own are moved whatever their type and size: no runtime needed them while it loaded.
  if (!info.external) {
    const floor = info.dtype && isFloating(info.dtype) ? minBytes : Math.max(minBytes, MAX_SHAPE_BYTES);
    if (info.byteLength < floor) return `below the floor of ${floor} bytes`;
    if (tensor.has(TENSOR.segment)) return 'stored in segments';
  }
  return isReturned({ graph, info, node }) ? 'is an output of its graph' : undefined;
}
