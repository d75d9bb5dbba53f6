// Runs a model of Transformers.js over weights that this package loads: npm start -- a model's folder
// The folder is as on the Hugging Face hub: config.json, tokenizer.json, onnx/model.onnx, and model.safetensors with
// the weights (docs/transformers-js.md says how to split them off).
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { env, pipeline } from '@huggingface/transformers';
import { nativeMetrics } from 'fastsafetensors-node';
import { registerBackend } from 'fastsafetensors-node/ort';

// The onnxruntime-node that Transformers.js uses: a project may have another one beside it.
const require = createRequire(import.meta.url);
registerBackend(createRequire(require.resolve('@huggingface/transformers'))('onnxruntime-node'));

const folder = resolve(process.argv[2] ?? 'model');
env.allowRemoteModels = false;
env.localModelPath = '';
const extract = await pipeline('feature-extraction', folder, {
  dtype: 'fp32',
  session_options: { executionProviders: [{ name: 'fastsafetensors', weights: `${folder}/model.safetensors` }] },
});
const { dims } = await extract(['the weights are loaded once', 'and not twice'], { pooling: 'mean', normalize: true });
console.log(`features: [${dims}], memory for weights: ${nativeMetrics().hostBytes} bytes`);
await extract.dispose();
