/**
 * The 3FS copier over a modelled link that all processes share: the first load of a process, and the second by a
 * loader of the same kind, which finds ring and buffer there. Beside it what the model allows (`ideal`: the link's time
 * and one latency), what a client without any cost of its own gets of it (`floor`: as many reads in flight into memory
 * that is there, their bytes dropped, bench/native/usrbio_floor.cc), and a baseline that keeps one read in flight
 * (bench/native/usrbio_baseline.cc). Whole loads are timed, from the first process that starts to the last that ends,
 * the first touch of all memory included; medians of the rate as a part of the link's.
 *
 * The emulator runs in the processes that load. What it does there and no daemon would do on their machine is off or
 * little: no poison before reads (POISON=0), two threads that read files (THREADS=2). What is left of it, its copies
 * out of the page cache above all, is in all figures but `ideal`. One process loads 640 MiB by default: 95 % at first
 * and 97 % the second time are promised of 2 GB/s with 1 ms a job.
 *
 * `npm run bench -- 3fs [--runs 5] [--processes 1,2,4,8] [--devices cpu,cuda:0] [--shards 2] [--mib 320]
 * [--option name=value …]`; several processes share the shards, each has one at least.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { emulators } from '../src/testing/index.js';

const TENSOR = 32 << 20;
const LINKS = [
  { gbPerSecond: 1, msPerJob: 10, least: { first: 0.95, second: 0.96 } },
  { gbPerSecond: 2, msPerJob: 1, least: { first: 0.95, second: 0.97 } },
];
/** Bytes of the baseline's buffer, both halves: as its original is published with. */
const BASELINE_BUFFER = 16e6;
const FLOOR_IN_FLIGHT = 32;

/** What one process prints for a load; times in seconds, of one clock. */
interface Run {
  bytes: number;
  begin: number;
  end: number;
  maxInFlight: number;
}

export interface Row {
  link: string;
  memory: string;
  processes: number;
  /** Median parts of the link's bandwidth. */
  first: number;
  second: number;
  ideal: number;
  floor: number;
  baseline: number;
  maxInFlight: number;
  least: { first: number; second: number };
}

async function writeShard(path: string, tensors: number): Promise<void> {
  const entries = Array.from(
    { length: tensors },
    (_, i) =>
      `"${path.at(-13)}.${i}":{"dtype":"U8","shape":[${TENSOR}],"data_offsets":[${i * TENSOR},${(i + 1) * TENSOR}]}`,
  );
  const header = Buffer.from(`{${entries.join(',')}}`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const file = await open(path, 'w');
  await file.write(Buffer.concat([length, header]));
  const block = Buffer.alloc(TENSOR, 1);
  for (let i = 0; i < tensors; ++i) await file.write(block);
  await file.close();
}

/**
 * Starts the processes, lets them get ready, and sets them off together after `prepare`: as many times as each of them
 * loads. The runs of each time.
 */
async function together(
  commands: readonly string[][],
  times: number,
  env: NodeJS.ProcessEnv,
  prepare: () => void,
): Promise<Run[][]> {
  const children = commands.map(([command, ...args]) => {
    const process = spawn(command!, args, { env, stdio: ['pipe', 'pipe', 'inherit'] });
    return { process, lines: createInterface(process.stdout)[Symbol.asyncIterator](), ended: once(process, 'close') };
  });
  await setTimeout(300 + 200 * children.length);
  prepare();
  const runs: Run[][] = [];
  for (let time = 0; time < times; ++time) {
    for (const child of children) child.process.stdin.write('go\n');
    const lines = await Promise.all(children.map(({ lines }) => lines.next()));
    if (lines.some(({ done }) => done)) break; // its exit code says more
    runs.push(lines.map(({ value }) => JSON.parse(value) as Run));
  }
  for (const child of children) child.process.stdin.end();
  for (const { ended } of children) {
    const [code] = await ended;
    if (code !== 0 || runs.length < times) throw new Error(`a process that loads ended with ${code}`);
  }
  return runs;
}

function medianOf(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

export interface Measurement {
  runs: number;
  processes: readonly number[];
  devices: readonly string[];
  shards: number;
  /** Of a shard. */
  mib: number;
  /** Of the loader. */
  options: object;
}

export async function measureThreeFs(measurement: Measurement): Promise<Row[]> {
  const { runs, processes, devices, shards: count, mib, options } = measurement;
  const build = join(__dirname, '..', '..', 'build', 'cmake');
  const native = ['usrbio_baseline', 'usrbio_floor', 'touch_memory'];
  const built = spawnSync('cmake', ['--build', build, '--parallel', '2', '--target', ...native]);
  if (built.status !== 0) throw new Error(`the baseline cannot be built: ${built.stderr}`);
  const folder = await mkdtemp(join(tmpdir(), 'fastsafetensors-bench-'));
  try {
    await mkdir(join(folder, '3fs-virt', 'iovs'), { recursive: true });
    const tensors = Math.max(1, Math.round((mib << 20) / TENSOR));
    const shards = Array.from({ length: count }, (_, i) => join(folder, `${100 + i}.safetensors`));
    for (const shard of shards) await writeShard(shard, tensors);
    let links = 0;
    const memoryBytes = 1.2 * Math.max(shards.length, ...processes) * tensors * TENSOR;
    const touchMemory = (): void => void spawnSync(join(build, 'touch_memory'), [String(Math.ceil(memoryBytes))]);
    const rates = async (command: Command, processes: number, model: object, memory: string): Promise<Rate[]> => {
      const emulated = emulators.hf3fs.env({
        ...model,
        LINK: join(folder, `link-${links++}`),
        POISON: 0,
        THREADS: 2,
      });
      const env = { ...process.env, ...emulated, ...(memory === 'cpu' ? {} : emulators.cuda.env({ LEAKS: 'off' })) };
      // Every process the same amount: together as much as one alone, and at least one shard.
      const each = shards.slice(0, Math.max(1, Math.floor(shards.length / processes)));
      const commands = new Array(processes).fill([...command.words, ...each]);
      return (await together(commands, command.loads, env, touchMemory)).map(rateOf);
    };
    const rows: Row[] = [];
    for (const memory of devices) {
      const copier: Command = {
        words: [process.execPath, join(__dirname, 'three-fs-child.js'), memory, JSON.stringify(options)],
        loads: 2,
      };
      const baseline = { words: [join(build, 'usrbio_baseline'), folder, memory, String(BASELINE_BUFFER)], loads: 1 };
      const floor = { words: [join(build, 'usrbio_floor'), folder, String(FLOOR_IN_FLIGHT)], loads: 1 };
      for (const { gbPerSecond, msPerJob, least } of LINKS) {
        const model = { BANDWIDTH: gbPerSecond * 1e9, LATENCY_MS: msPerJob };
        for (const processes of measurement.processes) {
          const parts = { first: [], second: [], floor: [], baseline: [] } as Record<Measured, number[]>;
          let maxInFlight = 0;
          let ideal = 0;
          for (let i = 0; i < runs; ++i) {
            const [first, second] = await rates(copier, processes, model, memory);
            const [ofFloor] = await rates(floor, processes, model, memory);
            const [ofBaseline] = await rates(baseline, processes, model, memory);
            const measured = { first, second, floor: ofFloor, baseline: ofBaseline };
            for (const [what, rate] of Object.entries(measured))
              parts[what as Measured].push(rate!.bytesPerSecond / model.BANDWIDTH);
            maxInFlight = Math.max(maxInFlight, first!.maxInFlight, second!.maxInFlight);
            ideal = 1 / (1 + ((msPerJob / 1000) * model.BANDWIDTH) / first!.bytes);
          }
          const link = `${gbPerSecond} GB/s, ${msPerJob} ms a job`;
          const medians = Object.fromEntries(
            Object.entries(parts).map(([what, values]) => [what, medianOf(values)]),
          ) as Record<Measured, number>;
          rows.push({ link, memory, processes, ...medians, ideal, maxInFlight, least });
          const runsOf = (what: Measured): string => `${what} ${parts[what].map(percent).join(', ')}`;
          console.error(
            `${link}, ${memory}, ${processes}: ${runsOf('first')}; ${runsOf('second')}; ${runsOf('floor')}`,
          );
        }
      }
    }
    return rows;
  } finally {
    await rm(folder, { recursive: true });
  }
}

type Measured = 'first' | 'second' | 'floor' | 'baseline';

interface Command {
  words: readonly string[];
  /** How many loads it does, each when it is told to. */
  loads: number;
}

interface Rate {
  bytes: number;
  bytesPerSecond: number;
  maxInFlight: number;
}

/** Of loads that were set off together. */
function rateOf(runs: readonly Run[]): Rate {
  const bytes = runs.reduce((sum, run) => sum + run.bytes, 0);
  const seconds = Math.max(...runs.map(({ end }) => end)) - Math.min(...runs.map(({ begin }) => begin));
  return { bytes, bytesPerSecond: bytes / seconds, maxInFlight: Math.max(...runs.map((run) => run.maxInFlight)) };
}

function percent(part: number): string {
  return `${(part * 100).toFixed(1)} %`;
}

export async function printThreeFs(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      runs: { type: 'string', default: '5' },
      processes: { type: 'string', default: '1,2,4,8' },
      devices: { type: 'string', default: 'cpu,cuda:0' },
      shards: { type: 'string', default: '2' },
      mib: { type: 'string', default: '320' },
      option: { type: 'string', multiple: true, default: [] },
    },
  });
  const options = Object.fromEntries(
    values.option.map((text) => [text.split('=')[0]!, Number(text.split('=')[1])] as const),
  );
  const rows = await measureThreeFs({
    runs: Number(values.runs),
    processes: values.processes.split(',').map(Number),
    devices: values.devices.split(','),
    shards: Number(values.shards),
    mib: Number(values.mib),
    options,
  });
  console.table(
    rows.map(({ first, second, ideal, floor, baseline, least, maxInFlight, ...row }) => ({
      ...row,
      'first load': percent(first),
      second: percent(second),
      floor: percent(floor),
      ideal: percent(ideal),
      baseline: percent(baseline),
      'in flight': maxInFlight,
      ...(row.processes === 1
        ? {
            'at least': `${percent(least.first)}, ${percent(least.second)}`,
            holds: first >= least.first && second >= least.second,
          }
        : {}),
    })),
  );
}
