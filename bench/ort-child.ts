/** A process of `npm run bench -- ort`: makes and runs a session in one way, prints the JSON of {@link Measured}. */
import { readFileSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession } from '../adapters/ort/index.js';
import { median } from './held.js';

export interface Measured {
  readonly createdMs: number;
  readonly firstRunMs: number;
  /** Of seven later runs, the median. */
  readonly runMs: number;
  /** Of all threads, until the first run had ended. */
  readonly cpuMs: number;
  /** By how much resident memory rose over what it was before, pages of mapped files included. */
  readonly peakBytes: number;
  /** By how much memory of the process's own had risen at the end: not what it maps of files. */
  readonly privateBytes: number;
  /** Of the outputs; the same for each way. */
  readonly sum: number;
}

type Open = (graph: string, weights: string) => Promise<ort.InferenceSession>;

const WAYS: Readonly<Record<string, Open>> = {
  'onnxruntime-node, path': (graph) => ort.InferenceSession.create(graph),
  'onnxruntime-node, externalData': (graph, weights) =>
    ort.InferenceSession.create(readFileSync(graph), {
      externalData: [{ path: basename(weights), data: readFileSync(weights) }],
    }),
  createSession: (graph) => createSession(ort, graph),
};

function memory(file: 'status' | 'smaps_rollup', names: readonly string[]): number {
  const text = readFileSync(`/proc/self/${file}`, 'latin1');
  const kib = names.map((name) => Number(text.match(new RegExp(`^${name}:\\s+(\\d+)`, 'm'))![1]));
  return kib.reduce((sum, one) => sum + one, 0) * 1024;
}

const ownMemory = (): number => memory('smaps_rollup', ['Anonymous']);

async function main(open: Open, graph: string, weights: string): Promise<Measured> {
  writeFileSync('/proc/self/clear_refs', '5'); // VmHWM begins anew
  const before = memory('status', ['VmRSS']);
  const ownBefore = ownMemory();
  const usage = process.cpuUsage();
  const began = performance.now();
  const session = await open(graph, weights);
  const created = performance.now();
  const x = new ort.Tensor('float32', new Float32Array(4096).fill(0.5), [1, 4096]);
  const { y } = await session.run({ x });
  const ran = performance.now();
  const { user, system } = process.cpuUsage(usage);
  const later: number[] = [];
  for (let i = 0; i < 7; ++i) {
    const start = performance.now();
    await session.run({ x });
    later.push(performance.now() - start);
  }
  return {
    createdMs: created - began,
    firstRunMs: ran - created,
    runMs: median(later),
    cpuMs: (user + system) / 1000,
    peakBytes: memory('status', ['VmHWM']) - before,
    privateBytes: ownMemory() - ownBefore,
    sum: (y!.data as Float32Array).reduce((sum, one) => sum + one, 0),
  };
}

const [way, graph, weights] = process.argv.slice(2);
main(WAYS[way!]!, graph!, weights!).then((measured) => console.log(JSON.stringify(measured)));
