// With the argument `worker`, in worker threads as well, as both kinds of modules.
import { once } from 'node:events';
import { isMainThread, Worker } from 'node:worker_threads';
import * as main from 'fastsafetensors-node';
import * as ort from 'fastsafetensors-node/ort';
import * as testing from 'fastsafetensors-node/testing';
import * as tfjs from 'fastsafetensors-node/tfjs';
import { load } from './load.cjs';

await load({ main, ort, testing, tfjs }, 'ESM', isMainThread ? '' : ' in a worker');
if (isMainThread && process.argv[2] === 'worker') {
  for (const file of ['use.mjs', 'use.cjs']) {
    const worker = new Worker(new URL(file, import.meta.url));
    const [code] = await once(worker, 'exit');
    if (code !== 0) process.exitCode = code;
  }
}
