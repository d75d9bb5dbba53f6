import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type * as Ort from 'onnxruntime-node';
import { noise } from '../../src/models/onnx/noise.js';
import { TENSOR } from '../../src/models/onnx/schema.js';
import {
  type Attribute,
  bytesOf,
  externalTensor,
  graph,
  type ModelParts,
  message,
  model,
  node,
  rawTensor,
  tensor,
  value,
} from './onnx-model.js';

/** A small model of one kind of those that tools write. */
export interface GeneratedModel {
  readonly name: string;
  /** Writes it into an empty folder. */
  write(folder: string): string;
  feeds(ort: typeof Ort, seed: number): Record<string, Ort.Tensor>;
  /** Whether there is something for split-onnx to lift; default: yes. */
  readonly lifts?: boolean;
  /** Whether onnxruntime-node refuses it; default: no. */
  readonly fails?: boolean;
}

type Parts = ModelParts & { irVersion?: number };
type Files = Readonly<Record<string, Uint8Array | { readonly link: string }>>;

/** ONNX's numbers of element types. */
const T = {
  ...{ F32: 1, U8: 2, I8: 3, U16: 4, I16: 5, I32: 6, I64: 7, STRING: 8, BOOL: 9, F16: 10, F64: 11, U32: 12, U64: 13 },
  ...{ BF16: 16, F8_E4M3: 17, F8_E4M3FNUZ: 18, F8_E5M2: 19, F8_E5M2FNUZ: 20, UINT4: 21, INT4: 22, F4: 23 },
  ...{ F8_E8M0: 24, UINT2: 25, INT2: 26 },
};

const made: GeneratedModel[] = [];

function add(
  name: string,
  parts: Parts,
  feeds: GeneratedModel['feeds'],
  { files = {}, ...rest }: { files?: Files; lifts?: boolean; fails?: boolean } = {},
): void {
  const write = (folder: string) => {
    for (const [file, content] of Object.entries(files)) {
      const path = join(folder, file);
      mkdirSync(dirname(path), { recursive: true });
      if (content instanceof Uint8Array) writeFileSync(path, content);
      else symlinkSync(content.link, path);
    }
    const path = join(folder, 'm.onnx');
    writeFileSync(path, model(parts, parts.irVersion));
    return path;
  };
  made.push({ name, write, feeds, ...rest });
}

const float =
  (...dims: number[]): GeneratedModel['feeds'] =>
  (ort, seed) => ({ x: new ort.Tensor('float32', noise(sizeOf(dims), seed), dims) });
const sizeOf = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);
const randomBytes = (length: number, seed = 7) => Uint8Array.from(noise(length, seed), (v) => (v + 1) * 128);
const raw = (name: string, dims: readonly number[], type: number, data: ArrayBufferView) =>
  tensor(name, dims, type, { [TENSOR.rawData]: bytesOf(data) });
const floats = (name: string, dims: readonly number[], scale = 1, seed = 3) =>
  rawTensor(
    name,
    dims,
    noise(sizeOf(dims), seed).map((v) => v * scale),
  );
const ints = (...values: number[]) => BigInt64Array.from(values, BigInt);
const shape = (name: string, ...values: number[]) => raw(name, [values.length], T.I64, ints(...values));
const int = (value: number): Attribute => ({ int: value });
const X = value('x', [512]);
const Y = value('y', [512]);
const latest = { opsets: { '': 21 }, irVersion: 10 };

/** y = x + x * Cast(w)[0 … 511], with so many elements of w that it is lifted. */
function casting(w: ReturnType<typeof tensor>, versions: { opsets: Record<string, number>; irVersion: number }): Parts {
  return {
    nodes: [
      node('Cast', ['w'], ['f'], { to: int(1) }),
      node('Slice', ['f', 'from', 'to'], ['s']),
      node('Mul', ['x', 's'], ['p']),
      node('Add', ['x', 'p'], ['y']),
    ],
    initializers: [w, shape('from', 0), shape('to', 512)],
    inputs: [X],
    outputs: [Y],
    ...versions,
  };
}

/** Bytes that are a number in every dtype: no NaN, whose bits a conversion may change. */
const plain = (length: number) => randomBytes(length).map((byte) => byte & 0x37);

for (const [name, type, bits] of [
  ['F32', T.F32, 32],
  ['F64', T.F64, 64],
  ['F16', T.F16, 16],
  ['BF16', T.BF16, 16],
  ['F8_E4M3', T.F8_E4M3, 8],
  ['F8_E4M3FNUZ', T.F8_E4M3FNUZ, 8],
  ['F8_E5M2', T.F8_E5M2, 8],
  ['F8_E5M2FNUZ', T.F8_E5M2FNUZ, 8],
  ['F8_E8M0', T.F8_E8M0, 8],
  ['I8', T.I8, 8],
  ['U8', T.U8, 8],
  ['I16', T.I16, 16],
  ['U16', T.U16, 16],
  ['I32', T.I32, 32],
  ['U32', T.U32, 32],
  ['I64', T.I64, 64],
  ['U64', T.U64, 64],
  ['UINT4', T.UINT4, 4],
  ['INT4', T.INT4, 4],
  ['UINT2', T.UINT2, 2],
  ['INT2', T.INT2, 2],
  ['F4', T.F4, 4],
] as const) {
  const elements = (64 * 1024 * 8) / bits;
  const versions = { opsets: { '': bits < 8 || type === T.F8_E8M0 ? 25 : 19 }, irVersion: bits < 8 ? 12 : 10 };
  const data = type === T.F64 ? Float64Array.from(noise(elements)) : plain(64 * 1024);
  const w = raw('w', [elements], type, data);
  add(`${name} weights`, casting(w, versions), float(512), { fails: type === T.F4 });
}

const bools = Uint8Array.from(plain(64 * 1024), (byte) => byte & 1);
add('BOOL weights', casting(raw('w', [64 * 1024], T.BOOL, bools), latest), float(512));

// The elements in the fields of their types, in place of raw_data.
for (const [name, type, count, data] of [
  ['F32 in float_data', T.F32, 1024, { [TENSOR.floatData]: bytesOf(noise(1024)) }],
  ['F16 in int32_data', T.F16, 1024, { [TENSOR.int32Data]: [...new Uint16Array(plain(2048).buffer)] }],
  ['I8 in int32_data', T.I8, 65536, { [TENSOR.int32Data]: [...new Int8Array(randomBytes(65536).buffer)] }],
  ['U16 in int32_data', T.U16, 32768, { [TENSOR.int32Data]: [...new Uint16Array(randomBytes(65536).buffer)] }],
  ['I32 in int32_data', T.I32, 16384, { [TENSOR.int32Data]: Array.from(noise(16384), (v) => Math.floor(v * 2e9)) }],
  ['I64 in int64_data', T.I64, 8192, { [TENSOR.int64Data]: Array.from(noise(8192), (v) => Math.floor(v * 2 ** 52)) }],
  ['U32 in uint64_data', T.U32, 16384, { [TENSOR.uint64Data]: [...new Uint32Array(randomBytes(65536).buffer)] }],
  ['BOOL in int32_data', T.BOOL, 65536, { [TENSOR.int32Data]: [...bools] }],
  ['INT4 in int32_data', T.INT4, 131072, { [TENSOR.int32Data]: [...randomBytes(65536)] }],
] as const) {
  const versions = { opsets: { '': type === T.INT4 ? 21 : 19 }, irVersion: 10 };
  add(name, casting(tensor('w', [count], type, data as never), versions), float(512));
}

add(
  'an odd number of INT4',
  {
    nodes: [
      node('DequantizeLinear', ['w', 'scale'], ['d']),
      node('Slice', ['d', 'from', 'to'], ['s']),
      node('Add', ['x', 's'], ['y']),
    ],
    initializers: [
      raw('w', [131073], T.INT4, randomBytes(65537)),
      floats('scale', []),
      shape('from', 130561),
      shape('to', 131073),
    ],
    inputs: [X],
    outputs: [Y],
    ...latest,
  },
  float(512),
);

const matrix = { inputs: [value('x', [4, 256])], outputs: [value('y', [4, 512])] };
const zero = (name: string, type: number) => raw(name, [], type, new Uint8Array(1));

add(
  'int8 weights between QuantizeLinear and DequantizeLinear',
  {
    nodes: [
      node('QuantizeLinear', ['x', 'xs', 'xz'], ['q']),
      node('DequantizeLinear', ['q', 'xs', 'xz'], ['d']),
      node('DequantizeLinear', ['w', 'ws', 'wz'], ['f'], { axis: int(1) }),
      node('MatMul', ['d', 'f'], ['y']),
    ],
    initializers: [
      rawTensor('xs', [], Float32Array.of(1 / 128)),
      raw('xz', [], T.U8, Uint8Array.of(128)),
      raw('w', [256, 512], T.I8, randomBytes(256 * 512)),
      rawTensor(
        'ws',
        [512],
        noise(512).map((v) => 0.01 + Math.abs(v) / 100),
      ),
      raw('wz', [512], T.I8, new Int8Array(512)),
    ],
    ...matrix,
  },
  float(4, 256),
);

add(
  'MatMulInteger over DynamicQuantizeLinear',
  {
    nodes: [
      node('DynamicQuantizeLinear', ['x'], ['q', 'qs', 'qz']),
      node('MatMulInteger', ['q', 'w', 'qz', 'wz'], ['i']),
      node('Cast', ['i'], ['f'], { to: int(1) }),
      node('Mul', ['f', 'qs'], ['y']),
    ],
    initializers: [raw('w', [256, 512], T.U8, randomBytes(256 * 512)), raw('wz', [], T.U8, Uint8Array.of(117))],
    ...matrix,
  },
  float(4, 256),
);

add(
  'QLinearMatMul',
  {
    nodes: [
      node('QuantizeLinear', ['x', 's', 'z'], ['q']),
      node('QLinearMatMul', ['q', 's', 'z', 'w', 's', 'wz', 'big', 'z'], ['r']),
      node('DequantizeLinear', ['r', 'big', 'z'], ['y']),
    ],
    initializers: [
      rawTensor('s', [], Float32Array.of(1 / 128)),
      rawTensor('big', [], Float32Array.of(1 / 4)),
      raw('z', [], T.U8, Uint8Array.of(128)),
      raw('w', [256, 512], T.I8, randomBytes(256 * 512)),
      zero('wz', T.I8),
    ],
    ...matrix,
  },
  float(4, 256),
);

for (const bits of [4, 8]) {
  const blocks = 256 / 32;
  add(
    `MatMulNBits of ${bits} bits`,
    {
      nodes: [
        node(
          'MatMulNBits',
          ['x', 'w', 'scales'],
          ['y'],
          { K: int(256), N: int(512), bits: int(bits), block_size: int(32) },
          'com.microsoft',
        ),
      ],
      initializers: [
        raw('w', [512, blocks, 4 * bits], T.U8, randomBytes(512 * blocks * 4 * bits)),
        floats('scales', bits === 4 ? [512 * blocks] : [512, blocks], 0.1),
      ],
      ...matrix,
      opsets: { '': 21, 'com.microsoft': 1 },
      irVersion: 10,
    },
    float(4, 256),
  );
}

for (const [name, type] of [
  ['INT4', T.INT4],
  ['UINT4', T.UINT4],
] as const) {
  add(
    `${name} weights in blocks`,
    {
      nodes: [
        node('DequantizeLinear', ['w', 'scales'], ['d'], { axis: int(0), block_size: int(32) }),
        node('MatMul', ['x', 'd'], ['y']),
      ],
      initializers: [raw('w', [256, 512], type, randomBytes(256 * 256)), floats('scales', [8, 512], 0.1)],
      ...matrix,
      ...latest,
    },
    float(4, 256),
  );
}

add(
  'a convolution in int8',
  {
    nodes: [
      node('DynamicQuantizeLinear', ['x'], ['q', 'qs', 'qz']),
      node('ConvInteger', ['q', 'w', 'qz', 'wz'], ['i'], { kernel_shape: { ints: [3, 3] } }),
      node('Cast', ['i'], ['f'], { to: int(1) }),
      node('Mul', ['f', 'qs'], ['y']),
    ],
    initializers: [raw('w', [128, 64, 3, 3], T.U8, randomBytes(128 * 64 * 9)), raw('wz', [], T.U8, Uint8Array.of(9))],
    inputs: [value('x', [1, 64, 6, 6])],
    outputs: [value('y', [1, 128, 4, 4])],
  },
  float(1, 64, 6, 6),
);

add(
  'a table of int64',
  {
    nodes: [
      node('Gather', ['table', 'i'], ['rows']),
      node('Cast', ['rows'], ['f'], { to: int(1) }),
      node('Add', ['x', 'f'], ['y']),
    ],
    initializers: [raw('table', [40, 512], T.I64, ints(...Array.from(noise(40 * 512), (v) => Math.floor(v * 1e15))))],
    inputs: [X, value('i', [], T.I64)],
    outputs: [Y],
  },
  (ort, seed) => ({ ...float(512)(ort, seed), i: new ort.Tensor('int64', ints(seed), []) }),
);

add(
  'an embedding whose matrix is the head as well',
  {
    nodes: [
      node('Gather', ['e', 'i'], ['h']),
      node('Transpose', ['e'], ['t'], { perm: { ints: [1, 0] } }),
      node('MatMul', ['h', 't'], ['y']),
    ],
    initializers: [floats('e', [100, 64])],
    inputs: [value('i', [3], T.I64)],
    outputs: [value('y', [3, 100])],
  },
  (ort, seed) => ({ i: new ort.Tensor('int64', ints(seed, 2 * seed, 99), [3]) }),
);

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

export const GENERATED_MODELS: readonly GeneratedModel[] = made;
