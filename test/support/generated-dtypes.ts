/** Models with weights of every dtype, in every field, and quantized ones. */
import { noise } from '../../src/models/onnx/noise.js';
import { TENSOR } from '../../src/models/onnx/schema.js';
import {
  casting,
  float,
  floats,
  type GeneratedModel,
  int,
  ints,
  latest,
  Models,
  plain,
  randomBytes,
  raw,
  shape,
  T,
  X,
  Y,
} from './generated-parts.js';
import { bytesOf, node, rawTensor, tensor, value } from './onnx-model.js';

const { made, add } = new Models();

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

export const DTYPE_MODELS: readonly GeneratedModel[] = made;
