/**
 * A process of `npm run bench -- host`: for each line of stdin, the JSON of a list of files, loads them in one way,
 * touches each page of each tensor, and answers with the JSON of a {@link Load}. As host_peers.py.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fastsafeOpen, ParallelLoader, SafeTensorsFileLoader } from '../src/index.js';
import { Ticker } from './held.js';

/** One load, until each page of each tensor was touched. */
export interface Load {
  readonly seconds: number;
  /** Of all threads. */
  readonly cpuSeconds: number;
  /** By how much resident memory rose over what it was before. */
  readonly peakBytes: number;
  readonly bytes: number;
  /** The longest that the event loop was held, in ms, without the touch. */
  readonly heldMs?: number;
}

interface Tensor {
  readonly data: ArrayBufferView | null;
  dispose(): void;
}
type Way = (files: string[]) => Promise<{ tensors: Tensor[]; close?: () => Promise<void> }>;

const streamed =
  (mmap: boolean): Way =>
  async (files) => {
    const loader = new ParallelLoader({ files, mmap, queueSize: 64 });
    const tensors: Tensor[] = [];
    for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
    return { tensors, close: () => loader.close() };
  };

const whole =
  (mmap: boolean): Way =>
  async (files) => {
    const loader = new SafeTensorsFileLoader({ mmap });
    await loader.addFilenames(files);
    const buffer = await loader.copyFilesToDevice();
    const tensors: Tensor[] = [];
    for (const name of buffer.keys()) tensors.push(await buffer.getTensor(name));
    return {
      tensors,
      close: async () => {
        await buffer.close();
        await loader.close();
      },
    };
  };

export const WAYS: Readonly<Record<string, Way>> = {
  'mapped, streamed': streamed(true),
  'mapped, whole': whole(true),
  'copied, streamed': streamed(false),
  'copied, whole': whole(false),
  'default, streamed': async (files) => {
    const loader = new ParallelLoader({ files });
    const tensors: Tensor[] = [];
    for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
    return { tensors, close: () => loader.close() };
  },
  'lazy, one by one': async (files) => {
    const opened = await fastsafeOpen(files);
    const tensors: Tensor[] = [];
    for (const name of opened.keys()) tensors.push(await opened.getTensor(name));
    return { tensors, close: () => opened.close() };
  },
  'fs.readFileSync': async (files) => {
    const tensors: Tensor[] = [];
    for (const file of files) {
      const bytes = readFileSync(file);
      const begin = 8 + Number(bytes.readBigUInt64LE());
      const header = JSON.parse(bytes.toString('utf8', 8, begin)) as Record<string, { data_offsets: [number, number] }>;
      for (const { data_offsets } of Object.values(header)) {
        const [from, to] = data_offsets;
        const data = new Float32Array(bytes.buffer, bytes.byteOffset + begin + from, (to - from) / 4);
        tensors.push({ data, dispose: () => {} });
      }
    }
    return { tensors };
  },
};

function memory(name: 'VmRSS' | 'VmHWM'): number {
  const line = readFileSync('/proc/self/status', 'latin1').match(new RegExp(`^${name}:\\s+(\\d+)`, 'm'));
  return Number(line![1]) * 1024;
}

/** What a page has of them. */
const FLOATS = 1024;

/**
 * Of arrays alone: V8 would compile it anew for each other class of tensors. Eight pages a turn, or the loop keeps the
 * processor from asking memory for as many at a time as the floor's does.
 */
function touch(arrays: readonly Float32Array[]): number {
  let sum = 0;
  let bytes = 0;
  for (const floats of arrays) {
    const { length } = floats;
    let i = 0;
    for (; i + 7 * FLOATS < length; i += 8 * FLOATS) {
      sum += floats[i]! + floats[i + FLOATS]! + floats[i + 2 * FLOATS]! + floats[i + 3 * FLOATS]!;
      sum += floats[i + 4 * FLOATS]! + floats[i + 5 * FLOATS]! + floats[i + 6 * FLOATS]! + floats[i + 7 * FLOATS]!;
    }
    for (; i < length; i += FLOATS) sum += floats[i]!;
    bytes += floats.byteLength;
  }
  if (!(sum > 0)) throw new Error('the tensors hold other numbers than were written');
  return bytes;
}

async function load(way: Way, files: string[], ticker: Ticker): Promise<Load> {
  writeFileSync('/proc/self/clear_refs', '5');
  const before = memory('VmRSS');
  const usage = process.cpuUsage();
  ticker.take();
  const began = performance.now();
  const { tensors, close } = await way(files);
  const heldMs = ticker.take().ms;
  const bytes = touch(tensors.map(({ data }) => data as Float32Array));
  const seconds = (performance.now() - began) / 1000;
  const { user, system } = process.cpuUsage(usage);
  const peakBytes = memory('VmHWM') - before;
  for (const tensor of tensors) tensor.dispose();
  tensors.length = 0;
  await close?.();
  globalThis.gc?.(); // arrays outlive dispose(): what they hold would be neither free nor droppable from the page cache
  return { seconds, cpuSeconds: (user + system) / 1e6, peakBytes, bytes, heldMs };
}

/** So that V8 has compiled it before: it is the consumer's, and takes ten times as long in the interpreter. */
function warmTouch(): void {
  const data = new Float32Array(4 * 1024 * 1024).fill(1);
  for (let i = 0; i < 50; ++i) touch([data]);
}

async function answer(way: Way): Promise<void> {
  warmTouch();
  globalThis.gc?.(); // of its array: freed during the load, it would hide as much of the peak
  const ticker = new Ticker({ cpu: false });
  console.log('ready');
  for await (const line of createInterface(process.stdin)) {
    const loaded = await load(way, JSON.parse(line) as string[], ticker);
    await new Promise((resolve) => setTimeout(resolve, 20)); // for finalizers
    console.log(JSON.stringify(loaded));
  }
  ticker.stop();
}

if (require.main === module) void answer(WAYS[process.argv[2]!]!);
