// Two sessions of ONNX Runtime over the same weights, which are in memory once: npm start
// `npm run split` has moved the weights of model.onnx (y = relu(x w1) w2) into build/model.safetensors before.
import { nativeMetrics, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { createSession } from 'fastsafetensors-node/ort';
import * as ort from 'onnxruntime-node';

// For one session `weights: 'build/model.safetensors'` is enough; a loaded buffer serves several.
const loader = new SafeTensorsFileLoader({ device: 'cpu' });
await loader.addFilenames(['build/model.safetensors']);
const weights = await loader.copyFilesToDevice();
const sessions = [];
for (let i = 0; i < 2; ++i) sessions.push(await createSession(ort, 'build/model.split.onnx', { weights }));
await weights.close(); // the sessions keep what they use
await loader.close();

const x = new ort.Tensor(
  'float32',
  Float32Array.from({ length: 16 }, (_, i) => i / 16),
  [1, 16],
);
for (const session of sessions) {
  const { y } = await session.run({ x });
  console.log(`y: ${[...y.data].map((value) => value.toFixed(3)).join(' ')}`);
}
console.log(`memory for weights: ${nativeMetrics().hostBytes} bytes`);
for (const session of sessions) await session.release();
