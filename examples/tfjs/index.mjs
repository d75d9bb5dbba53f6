// Tensors of TensorFlow.js out of a .safetensors file: npm start
// With tfjs-node or tfjs-node-gpu in place of tfjs they are in TensorFlow's own memory; nothing else changes.
import * as tf from '@tensorflow/tfjs';
import { ParallelLoader, saveFile } from 'fastsafetensors-node';
import { tfjs } from 'fastsafetensors-node/tfjs';

const path = 'sample.safetensors';
const kernel = { shape: [2, 3], data: Float32Array.of(1, 2, 3, 4, 5, 6) };
await saveFile({ kernel, bias: { shape: [3], data: Float32Array.of(10, 20, 30) } }, path);

const loader = new ParallelLoader({ files: path, framework: tfjs(tf) });
const weights = {};
for await (const [name, tensor] of loader.iterateWeights()) weights[name] = tensor;
await loader.close();

const y = tf.tidy(() =>
  tf
    .tensor2d([[1, 1]])
    .matMul(weights.kernel)
    .add(weights.bias),
);
console.log(`y: ${[...(await y.data())].join(' ')}`);
tf.dispose([y, ...Object.values(weights)]);
