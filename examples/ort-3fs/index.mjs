// Loads from DeepSeek 3FS into tensors of ONNX Runtime and feeds them to a model whose weights are inputs: npm start
// On a machine with 3FS pass a folder in its mount. Without one, the emulator of its client library serves this folder:
// it is stricter than the real client and needs no daemon.
import { mkdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { ParallelThreeFSLoader } from 'fastsafetensors-node';
import { onnxruntime } from 'fastsafetensors-node/ort';
import { emulators } from 'fastsafetensors-node/testing';
import * as ort from 'onnxruntime-node';

const folder = resolve(process.argv[2] ?? 'build');
if (!process.argv[2]) {
  Object.assign(process.env, emulators.hf3fs.env()); // before anything of 3FS is used
  mkdirSync(`${folder}/3fs-virt/iovs`, { recursive: true }); // what makes a folder a mount of 3FS
}

const loader = new ParallelThreeFSLoader({ files: `${folder}/model.safetensors`, framework: onnxruntime(ort) });
const weights = {};
for await (const [name, tensor] of loader.iterateWeights()) weights[name] = tensor;
console.log(`${loader.report.tensors} tensors by ${loader.report.copier}`);
await loader.close();

const session = await ort.InferenceSession.create(`${folder}/model.split.onnx`);
const x = new ort.Tensor(
  'float32',
  Float32Array.from({ length: 16 }, (_, i) => i / 16),
  [1, 16],
);
const { y } = await session.run({ x, ...weights });
console.log(`y: ${[...y.data].map((value) => value.toFixed(3)).join(' ')}`);
await session.release();
