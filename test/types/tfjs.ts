// Compiled, never run: what users of TensorFlow.js write.
import * as tf from '@tensorflow/tfjs';
import { ParallelLoader } from 'fastsafetensors-node';
import { loadGraphModel, loadLayersModel, safetensorsHandler, tfjs } from 'fastsafetensors-node/tfjs';

export async function models(signal: AbortSignal): Promise<void> {
  const graph: tf.GraphModel = await loadGraphModel(tf, 'model.json', { weights: 'm.safetensors', signal });
  const layers: tf.LayersModel = await loadLayersModel(tf, 'model.json', { strict: false });
  const handler: tf.io.IOHandler = safetensorsHandler('model.json');
  await tf.loadGraphModel(handler);
  // @ts-expect-error a misspelled option
  await loadGraphModel(tf, 'model.json', { wieghts: 'm.safetensors' });
  // @ts-expect-error the module itself is needed
  await loadGraphModel({}, 'model.json');
  graph.dispose();
  layers.dispose();
}

export async function tensors(): Promise<void> {
  const loader = new ParallelLoader({ files: 'm.safetensors', framework: tfjs(tf) });
  for await (const [, tensor] of loader.iterateWeights()) {
    const typed: tf.Tensor = tensor;
    typed.dispose();
  }
}
