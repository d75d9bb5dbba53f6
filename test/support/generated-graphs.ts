/** Models with external data, tensors without elements, inner graphs, functions and other odd ones. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { noise } from '../../src/models/onnx/noise.js';
import { TENSOR } from '../../src/models/onnx/schema.js';
import {
  float,
  floats,
  type GeneratedModel,
  int,
  ints,
  Models,
  type Parts,
  plain,
  raw,
  shape,
  T,
  X,
  Y,
} from './generated-parts.js';
import { bytesOf, externalTensor, graph, message, node, rawTensor, tensor, value } from './onnx-model.js';

const { made, add } = new Models();

const shared = bytesOf(noise(8192));
const place = (location: string, offset: number, length?: number) => ({
  location,
  offset: `${offset}`,
  ...(length !== undefined && { length: `${length}` }),
});
add(
  'two initializers over the same bytes of a file',
  {
    nodes: [node('MatMul', ['x', 'a'], ['m']), node('MatMul', ['m', 'b'], ['y'])],
    initializers: [
      externalTensor('a', [64, 64], place('tied.bin', 64, 16384)),
      externalTensor('b', [64, 64], place('tied.bin', 64, 16384)),
    ],
    inputs: [value('x', [4, 64])],
    outputs: [value('y', [4, 64])],
  },
  float(4, 64),
  { files: { 'tied.bin': shared } },
);
add(
  'two initializers of different shapes over the same bytes of a file',
  {
    nodes: [node('MatMul', ['x', 'a'], ['m']), node('MatMul', ['m', 'b'], ['y'])],
    initializers: [
      externalTensor('a', [64, 32], place('tied.bin', 0, 8192)),
      externalTensor('b', [32, 64], place('tied.bin', 0, 8192)),
    ],
    inputs: [value('x', [4, 64])],
    outputs: [value('y', [4, 64])],
  },
  float(4, 64),
  { files: { 'tied.bin': shared } },
);

const concat = (...inputs: string[]) => node('Concat', inputs, ['y'], { axis: int(0) });
add(
  'an external tensor without elements',
  {
    nodes: [node('Add', ['x', 'w'], ['s']), concat('s', 'none')],
    initializers: [
      externalTensor('w', [512], place('w.bin', 0, 2048)),
      externalTensor('none', [0], place('w.bin', 0, 0)),
    ],
    inputs: [X],
    outputs: [Y],
  },
  float(512),
  { files: { 'w.bin': shared } },
);
add(
  'two external tensors without elements at one place, of different shapes',
  {
    nodes: [node('Add', ['x', 'w'], ['s']), node('Reshape', ['none', 'flat'], ['r']), concat('s', 'r', 'also')],
    initializers: [
      externalTensor('none', [0, 3], place('w.bin', 0, 0)),
      externalTensor('also', [0], place('w.bin', 0, 0)),
      externalTensor('w', [512], place('w.bin', 0, 2048)),
      shape('flat', -1),
    ],
    inputs: [X],
    outputs: [Y],
  },
  float(512),
  { files: { 'w.bin': shared } },
);
add(
  'tensors without elements in the model',
  {
    nodes: [node('Add', ['x', 'w'], ['s']), concat('s', 'none', 'zeroes')],
    initializers: [floats('w', [512]), floats('none', [0]), floats('zeroes', [0])],
    inputs: [X],
    outputs: [Y],
  },
  float(512),
);

const adding = (file: string, offset = 0, length?: number): Parts => ({
  nodes: [node('Add', ['x', 'w'], ['y'])],
  initializers: [externalTensor('w', [512], place(file, offset, length))],
  inputs: [X],
  outputs: [Y],
});
add('external data in a file beside it', adding('w.bin', 0, 2048), float(512), { files: { 'w.bin': shared } });
add('external data without a length', adding('w.bin', 128), float(512), { files: { 'w.bin': shared.slice(0, 2176) } });
add('external data in a folder', adding('data/w.bin', 512, 2048), float(512), { files: { 'data/w.bin': shared } });
add('external data by a link in its folder', adding('w.bin', 512, 2048), float(512), {
  files: { 'blobs/abc': shared, 'w.bin': { link: 'blobs/abc' } },
});
for (const [name, link] of Object.entries({ 'out of its folder': '../disk/w.bin', 'to a link': '../links/w.bin' })) {
  add(`external data by a link that leads ${name}`, adding('w.bin', 512, 2048), float(512), {
    files: { 'disk/w.bin': shared, 'links/w.bin': { link: '../disk/w.bin' }, 'models/w.bin': { link } },
    leaves: true,
  });
}
add('external data that are not there', adding('gone.bin', 0, 2048), float(512), { fails: true });
add('external data that end outside their file', adding('w.bin', 8192 * 4, 2048), float(512), {
  files: { 'w.bin': shared },
  fails: true,
});
add(
  'each weight in a file of its own',
  {
    nodes: [node('Add', ['x', 'a'], ['s']), node('Mul', ['s', 'b'], ['y'])],
    initializers: [
      externalTensor('a', [512], place('a.bin', 0, 2048)),
      externalTensor('b', [512], place('b.bin', 0, 2048)),
    ],
    inputs: [X],
    outputs: [Y],
  },
  float(512),
  { files: { 'a.bin': shared.slice(0, 2048), 'b.bin': shared.slice(4096, 6144) } },
);

const condition: GeneratedModel['feeds'] = (ort, seed) => ({
  ...float(512)(ort, seed),
  c: new ort.Tensor('bool', Uint8Array.of(seed % 2), []),
});
const C = value('c', [], T.BOOL);
const branch = (
  nodes: Parameters<typeof graph>[0]['nodes'],
  initializers: readonly ReturnType<typeof tensor>[] = [],
) => ({
  graph: graph({ nodes, initializers, outputs: [value('r', [512])] }),
});
add(
  'branches with initializers of one name',
  {
    nodes: [
      node('If', ['c'], ['y'], {
        then_branch: branch([node('Add', ['x', 'w'], ['r'])], [floats('w', [512], 1, 5)]),
        else_branch: branch([node('Sub', ['x', 'w'], ['r'])], [floats('w', [512], 1, 6)]),
      }),
    ],
    inputs: [X, C],
    outputs: [Y],
  },
  condition,
);
add(
  'branches with external initializers of one name',
  {
    nodes: [
      node('If', ['c'], ['y'], {
        then_branch: branch([node('Add', ['x', 'w'], ['r'])], [externalTensor('w', [512], place('w.bin', 0, 2048))]),
        else_branch: branch([node('Sub', ['x', 'w'], ['r'])], [externalTensor('w', [512], place('w.bin', 4096, 2048))]),
      }),
    ],
    inputs: [X, C],
    outputs: [Y],
  },
  condition,
  { files: { 'w.bin': shared } },
);
const constant = (name: string, held: ReturnType<typeof tensor>) =>
  node('Constant', [], [name], { value: { tensor: held } });
add(
  'two nodes without a name, with Constants of one name in their branches',
  {
    nodes: [1, 2].map((n) =>
      node('If', ['c'], [n === 2 ? 'y' : 'm'], {
        then_branch: branch([constant('k', floats('', [512], n, n)), node('Add', [n === 2 ? 'm' : 'x', 'k'], ['r'])]),
        else_branch: branch([
          constant('k', floats('', [512], n, n + 9)),
          node('Mul', [n === 2 ? 'm' : 'x', 'k'], ['r']),
        ]),
      }),
    ),
    inputs: [X, C],
    outputs: [Y],
  },
  condition,
);
add(
  'branches that use weights of the outer graph, two deep',
  {
    nodes: [
      node('If', ['c'], ['y'], {
        then_branch: branch([
          node('If', ['c'], ['r'], {
            then_branch: branch([node('Add', ['x', 'w'], ['r'])]),
            else_branch: branch([node('Neg', ['w'], ['r'])]),
          }),
        ]),
        else_branch: branch([node('Mul', ['x', 'w'], ['r'])]),
      }),
    ],
    initializers: [floats('w', [512])],
    inputs: [X, C],
    outputs: [Y],
  },
  condition,
);
add(
  'a loop with a weight in its body',
  {
    nodes: [
      node('Loop', ['n', '', 'x'], ['y'], {
        body: {
          graph: graph({
            nodes: [node('Identity', ['go'], ['on']), node('Add', ['h', 'w'], ['s']), node('Tanh', ['s'], ['next'])],
            initializers: [floats('w', [512])],
            inputs: [value('step', [], T.I64), value('go', [], T.BOOL), value('h', [512])],
            outputs: [value('on', [], T.BOOL), value('next', [512])],
          }),
        },
      }),
    ],
    initializers: [raw('n', [], T.I64, ints(3))],
    inputs: [X],
    outputs: [Y],
  },
  float(512),
);
add(
  'a scan with a weight in its body',
  {
    nodes: [
      node('Scan', ['start', 'x'], ['end', 'y'], {
        num_scan_inputs: int(1),
        body: {
          graph: graph({
            nodes: [
              node('MatMul', ['row', 'w'], ['m']),
              node('Add', ['m', 'h'], ['next']),
              node('Identity', ['next'], ['out']),
            ],
            initializers: [floats('w', [64, 64])],
            inputs: [value('h', [64]), value('row', [64])],
            outputs: [value('next', [64]), value('out', [64])],
          }),
        },
      }),
    ],
    initializers: [floats('start', [64])],
    inputs: [value('x', [5, 64])],
    outputs: [value('y', [5, 64])],
  },
  float(5, 64),
);

/** FunctionProto: name 1, input 4, output 5, node 7, opset_import 9, domain 10. */
const definition = (name: string, inputs: readonly string[], nodes: readonly ReturnType<typeof node>[]) =>
  message({ 1: name, 4: inputs, 5: ['out'], 7: nodes, 9: message({ 1: '', 2: 18 }), 10: 'mine' });
const withFunctions = { opsets: { '': 18, mine: 1 }, irVersion: 8 };
add(
  'a function that takes a weight, and has one',
  {
    nodes: [node('Scaled', ['x', 'w'], ['y'], {}, 'mine')],
    initializers: [floats('w', [512])],
    functions: [
      definition(
        'Scaled',
        ['a', 'b'],
        [constant('k', floats('', [512], 2, 8)), node('Add', ['a', 'b'], ['s']), node('Mul', ['s', 'k'], ['out'])],
      ),
    ],
    inputs: [X],
    outputs: [Y],
    ...withFunctions,
  },
  float(512),
);
add(
  'a function with branches, and external data inside it',
  {
    nodes: [node('Chosen', ['x', 'c'], ['f'], {}, 'mine'), node('Add', ['f', 'w'], ['y'])],
    initializers: [externalTensor('w', [512], place('w.bin', 0, 2048))],
    functions: [
      definition(
        'Chosen',
        ['a', 'c'],
        [
          node('If', ['c'], ['out'], {
            then_branch: branch([constant('k', floats('', [512], 2, 8)), node('Add', ['a', 'k'], ['r'])]),
            else_branch: branch([node('Neg', ['a'], ['r'])]),
          }),
        ],
      ),
    ],
    inputs: [X, C],
    outputs: [Y],
    ...withFunctions,
  },
  condition,
  { files: { 'w.bin': shared } },
);

add(
  'weights in Constant nodes, one of them an output',
  {
    nodes: [constant('k', floats('', [512])), constant('z', floats('', [512], 3, 4)), node('Add', ['x', 'k'], ['y'])],
    inputs: [X],
    outputs: [Y, value('z', [512])],
  },
  float(512),
);
add(
  'an initializer that is an output',
  {
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [floats('w', [512])],
    inputs: [X],
    outputs: [Y, value('w', [512])],
  },
  float(512),
);
add(
  'constants that are folded',
  {
    nodes: [node('Reshape', ['w', 'flat'], ['v']), node('Neg', ['v'], ['n']), node('Add', ['x', 'n'], ['y'])],
    initializers: [floats('w', [2, 256]), shape('flat', 512)],
    inputs: [X],
    outputs: [Y],
  },
  float(512),
);
add(
  'a convolution whose normalization is fused into it',
  {
    nodes: [
      node('Conv', ['x', 'w', 'b'], ['c'], { kernel_shape: { ints: [3, 3] } }),
      node('BatchNormalization', ['c', 'scale', 'shift', 'mean', 'variance'], ['n']),
      node('Relu', ['n'], ['y']),
    ],
    initializers: [
      floats('w', [32, 16, 3, 3]),
      ...['b', 'scale', 'shift', 'mean'].map((name, i) => floats(name, [32], 1, i + 1)),
      rawTensor('variance', [32], noise(32).map(Math.abs)),
    ],
    inputs: [value('x', [1, 16, 8, 8])],
    outputs: [value('y', [1, 32, 6, 6])],
  },
  float(1, 16, 8, 8),
);
add(
  'an LSTM',
  {
    nodes: [node('LSTM', ['x', 'w', 'r', 'b'], ['y'], { hidden_size: int(32) })],
    initializers: [floats('w', [1, 128, 16]), floats('r', [1, 128, 32], 1, 5), floats('b', [1, 256], 1, 6)],
    inputs: [value('x', [5, 1, 16])],
    outputs: [value('y', [5, 1, 1, 32])],
  },
  float(5, 1, 16),
);
add(
  'float16 from input to output',
  {
    nodes: [node('MatMul', ['x', 'w'], ['y'])],
    initializers: [raw('w', [64, 64], T.F16, plain(8192))],
    inputs: [value('x', [4, 64], T.F16)],
    outputs: [value('y', [4, 64], T.F16)],
  },
  (ort, seed) => ({ x: new ort.Tensor('float16', new Uint16Array(plain(512).map((v) => v ^ seed).buffer), [4, 64]) }),
);
add(
  'IR version 3, where initializers are inputs too',
  {
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [floats('w', [512])],
    inputs: [X, value('w', [512])],
    outputs: [Y],
    irVersion: 3,
    opsets: { '': 9 },
  },
  float(512),
);
add(
  'a weight that callers may override',
  {
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [floats('w', [512])],
    inputs: [X, value('w', [512])],
    outputs: [Y],
  },
  float(512),
);
add(
  'strings beside weights',
  {
    nodes: [node('Gather', ['words', 'i'], ['word']), node('Add', ['x', 'w'], ['y'])],
    initializers: [tensor('words', [3], T.STRING, { [TENSOR.stringData]: ['one', 'two', 'drei'] }), floats('w', [512])],
    inputs: [X, value('i', [], T.I64)],
    outputs: [Y, value('word', [], T.STRING)],
  },
  (ort, seed) => ({ ...float(512)(ort, seed), i: new ort.Tensor('int64', ints(seed % 3), []) }),
);
const sparse: Parts = {
  nodes: [node('MatMul', ['x', 's'], ['m']), node('Add', ['m', 'w'], ['y'])],
  initializers: [floats('w', [512])],
  inputs: [value('x', [2, 256])],
  outputs: [value('y', [2, 512])],
};
made.push({
  name: 'a sparse initializer beside weights',
  feeds: float(2, 256),
  write(folder) {
    const parts = graph(sparse);
    // GraphProto.sparse_initializer 15; SparseTensorProto: values 1, indices 2, dims 3.
    parts.addMessage(15, message({ 1: floats('s', [3]), 2: shape('', 5, 777, 100_000), 3: [256, 512] }));
    const built = message({ 1: 8, 8: message({ 2: 13 }), 7: parts });
    const path = join(folder, 'm.onnx');
    writeFileSync(path, built.encode());
    return path;
  },
});
add(
  'no weights that are large enough',
  {
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [floats('w', [1])],
    inputs: [X],
    outputs: [Y],
  },
  float(512),
  { lifts: false },
);
add(
  'a node that does not exist',
  {
    nodes: [node('Nonsense', ['x', 'w'], ['y'])],
    initializers: [floats('w', [512])],
    inputs: [X],
    outputs: [Y],
  },
  float(512),
  { fails: true },
);

export const GRAPH_MODELS: readonly GeneratedModel[] = made;
