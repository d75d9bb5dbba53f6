import { floats, model, node, rawTensor, value } from './onnx-model.js';

/** `y = relu(x w1) w2`: model.onnx of the examples. Both weights are large enough for split-onnx to move them. */
export function exampleModel(): Uint8Array {
  return model({
    nodes: [node('MatMul', ['x', 'w1'], ['h']), node('Relu', ['h'], ['r']), node('MatMul', ['r', 'w2'], ['y'])],
    initializers: [rawTensor('w1', [16, 32], floats(512, 1 / 512)), rawTensor('w2', [32, 8], floats(256, 1 / 256))],
    inputs: [value('x', [1, 16])],
    outputs: [value('y', [1, 8])],
  });
}
