// A feature extraction by Transformers.js in a process of its own: prints JSON, memory in bytes above what the process
// had before the model. The first argument is a project that has Transformers.js; `provider` is JSON, or '' for none.
const { createRequire } = require('node:module');
const { readFileSync } = require('node:fs');
const { join } = require('node:path');
const { registerBackend } = require('fastsafetensors-node/ort');
const { nativeMetrics } = require('fastsafetensors-node');

const [, , project, folder, provider, options] = process.argv;
const requireThere = createRequire(join(project, 'index.js'));
const { env, pipeline } = requireThere('@huggingface/transformers');
// The onnxruntime-node of Transformers.js: a project may have another one, too.
const itsOrt = createRequire(requireThere.resolve('@huggingface/transformers'))('onnxruntime-node');
const kib = (key) => Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))[1]);

(async () => {
  env.allowRemoteModels = false;
  env.localModelPath = '';
  const session_options = {};
  if (provider) {
    registerBackend(itsOrt);
    session_options.executionProviders = [{ name: 'fastsafetensors', ...JSON.parse(provider) }];
  }
  const before = kib('VmRSS');
  const extract = await pipeline('feature-extraction', folder, {
    dtype: 'fp32',
    session_options,
    ...JSON.parse(options),
  });
  const sentences = ['the weights are loaded once', 'and not twice'];
  const { data, dims } = await extract(sentences, { pooling: 'mean', normalize: true });
  const peak = (kib('VmHWM') - before) * 1024;
  console.log(JSON.stringify({ peak, hostBytes: nativeMetrics().hostBytes, dims, data: [...data.slice(0, 32)] }));
  await extract.dispose();
})();
