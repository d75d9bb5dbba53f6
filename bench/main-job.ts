/**
 * The main job in figures: the header of 100,000 tensors, iterating over them, and how long the event loop is held
 * meanwhile, beside plain threads that do the same reads. `npm run bench`; test/long asserts them with room to spare.
 */
import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { type DeviceTensor, ParallelLoader, SafeTensorsFileLoader, SafeTensorsMetadata } from '../src/index.js';
import { cpuMs, median } from './held.js';

const TENSORS = 100_000;
const LARGE_BYTES = 256 * 1024 * 1024;

export interface Row {
  what: string;
  /** Median of the runs. */
  ms: number;
  /** Tensors or GB a second, where that says something. */
  rate?: string;
  tensorsPerSecond?: number;
  /** Median over the runs of the longest time that a ticker of 1 ms was late. */
  heldMs: number;
  /** The same in CPU time of the thread, which a busy machine does not stretch. */
  cpuHeldMs: number;
}

/** A file of `count` U8 tensors of `bytes` each with names of about 60 characters, as models have. */
async function writeModel(path: string, count: number, bytes: number): Promise<void> {
  const entries: string[] = [];
  for (let i = 0; i < count; ++i) {
    const name = `model.layers.${i}.mlp.experts.down_proj.weight_scale_inv`;
    entries.push(`"${name}":{"dtype":"U8","shape":[${bytes}],"data_offsets":[${i * bytes},${(i + 1) * bytes}]}`);
  }
  const header = Buffer.from(`{${entries.join(',')}}`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const file = await open(path, 'w');
  await file.write(length);
  await file.write(header);
  const block = Buffer.alloc(16 * 1024 * 1024, 1);
  for (let left = count * bytes; left > 0; left -= block.length)
    await file.write(block, 0, Math.min(left, block.length));
  await file.close();
}

type Watched = Pick<Row, 'ms' | 'heldMs' | 'cpuHeldMs'>;

/** Runs something beside a ticker of 1 ms: its time, and the longest that a tick was late. */
async function watched(run: () => Promise<void>): Promise<Watched> {
  let last = performance.now();
  let lastCpu = cpuMs();
  let heldMs = 0;
  let cpuHeldMs = 0;
  const tick = (): void => {
    const now = performance.now();
    const cpu = cpuMs();
    heldMs = Math.max(heldMs, now - last - 1);
    cpuHeldMs = Math.max(cpuHeldMs, cpu - lastCpu);
    last = now;
    lastCpu = cpu;
  };
  await new Promise((resolve) => setTimeout(resolve, 20));
  const timer = setInterval(tick, 1);
  tick();
  heldMs = 0;
  cpuHeldMs = 0;
  const start = last;
  await run();
  const ms = performance.now() - start;
  await new Promise((resolve) => setImmediate(resolve));
  tick();
  clearInterval(timer);
  return { ms, heldMs, cpuHeldMs };
}

async function measure(what: string, runs: number, run: () => Promise<void>): Promise<Row> {
  const results: Watched[] = [];
  for (let i = 0; i < runs; ++i) results.push(await watched(run));
  const of = (figure: keyof Watched): number => median(results.map((result) => result[figure]));
  return { what, ms: of('ms'), heldMs: of('heldMs'), cpuHeldMs: of('cpuHeldMs') };
}

/** The same reads by threads of Node's own, four at a time, in blocks of 4 MiB. */
function plainThreads(path: string): Promise<void> {
  const source = `
    const { openSync, readSync, closeSync, fstatSync } = require('node:fs');
    const { workerData } = require('node:worker_threads');
    const file = openSync(workerData.path);
    const size = fstatSync(file).size;
    const memory = Buffer.from(workerData.memory);
    for (let at = workerData.first * 4194304; at < size; at += 4 * 4194304)
      readSync(file, memory, at, Math.min(4194304, size - at), at);
    closeSync(file);`;
  return open(path).then(async (file) => {
    const { size } = await file.stat();
    await file.close();
    const memory = new SharedArrayBuffer(size);
    const ends = [0, 1, 2, 3].map(
      (first) =>
        new Promise<void>((resolve, reject) => {
          new Worker(source, { eval: true, workerData: { path, memory, first } })
            .on('error', reject)
            .on('exit', () => resolve());
        }),
    );
    await Promise.all(ends);
  });
}

export async function measureMainJob(runs = 5): Promise<Row[]> {
  const folder = await mkdtemp(join(tmpdir(), 'fastsafetensors-bench-'));
  try {
    const many = join(folder, 'many.safetensors');
    const large = join(folder, 'large.safetensors');
    await writeModel(many, TENSORS, 64);
    await writeModel(large, 64, LARGE_BYTES / 64);
    const rows: Row[] = [];
    const iterate = async (files: string, use?: (tensor: DeviceTensor) => void): Promise<void> => {
      const loader = new ParallelLoader({ files });
      for await (const [, tensor] of loader.iterateWeights()) {
        use?.(tensor);
        tensor.dispose();
      }
      await loader.close();
    };
    const touch = async (files: string): Promise<void> => {
      let sum = 0;
      await iterate(files, ({ data }) => (sum += (data as Uint8Array)[0]!));
      if (sum !== TENSORS) throw new Error('the tensors hold other numbers than were written');
    };
    const copy = async (files: string): Promise<void> => {
      const loader = new SafeTensorsFileLoader();
      await loader.addFilenames(files);
      const buffers = await loader.copyFilesToDevice();
      await buffers.close();
      await loader.close();
    };
    await iterate(many); // code is compiled, the page cache is warm
    await touch(many);
    await iterate(large);

    rows.push(
      await measure(`header of ${TENSORS} tensors`, runs, async () => {
        await SafeTensorsMetadata.fromFile(many);
      }),
    );
    for (const [what, run] of [
      [`ParallelLoader, ${TENSORS} tensors`, () => iterate(many)],
      [`the same, \`data\` of each touched`, () => touch(many)],
    ] as const) {
      const row = await measure(what, runs, run);
      row.tensorsPerSecond = TENSORS / (row.ms / 1000);
      row.rate = `${Math.round(row.tensorsPerSecond)} tensors/s`;
      rows.push(row);
    }
    rows.push(await measure(`SafeTensorsFileLoader, ${TENSORS} tensors`, runs, () => copy(many)));
    for (const [what, run] of [
      ['ParallelLoader, 256 MiB', () => iterate(large)],
      ['SafeTensorsFileLoader, 256 MiB', () => copy(large)],
      ['plain threads, 256 MiB', () => plainThreads(large)],
    ] as const) {
      const row = await measure(what, runs, run);
      row.rate = `${(LARGE_BYTES / 1e6 / row.ms).toFixed(2)} GB/s`;
      rows.push(row);
    }
    rows.push(await measure(`plain threads, file of ${TENSORS} tensors`, runs, () => plainThreads(many)));
    return rows;
  } finally {
    await rm(folder, { recursive: true });
  }
}

export async function printMainJob(): Promise<void> {
  console.table(
    (await measureMainJob()).map(({ what, ms, rate, heldMs, cpuHeldMs }) => ({
      what,
      ms: Number(ms.toFixed(1)),
      rate: rate ?? '',
      'event loop held, ms': Number(heldMs.toFixed(1)),
      'of it CPU, ms': Number(cpuHeldMs.toFixed(1)),
    })),
  );
}
