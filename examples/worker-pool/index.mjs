// A pool of worker threads shares the work on a model: each takes the next tensor, reads it by itself, and answers: npm
// start. The address of a tensor stays in its thread; what is sent between threads are names and results.
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { SafeTensorsMetadata, saveFile } from 'fastsafetensors-node';

const path = 'sample.safetensors';
const shape = [64, 64];
const layer = (scale) => ({ shape, data: Float32Array.from({ length: 64 * 64 }, (_, i) => scale * (i % 64)) });
await saveFile(Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`layer.${i}`, layer(i)])), path);

const names = [...(await SafeTensorsMetadata.fromFile(path)).keys()];
const largest = {};
await Promise.all(
  Array.from({ length: Math.min(4, availableParallelism()) }, () => {
    const worker = new Worker(new URL('./worker.mjs', import.meta.url), { workerData: path });
    return new Promise((resolve, reject) => {
      const next = () => worker.postMessage(names.shift() ?? null);
      worker.on('message', ({ name, value }) => {
        largest[name] = value;
        next();
      });
      worker.on('error', reject);
      worker.on('exit', resolve);
      next();
    });
  }),
);
for (const name of Object.keys(largest).sort()) console.log(`${name}: largest value ${largest[name]}`);
