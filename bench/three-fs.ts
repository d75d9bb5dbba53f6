/**
 * The 3FS copier over a modelled link that all processes share, beside a baseline that keeps one read in flight
 * (bench/native/usrbio_baseline.cc) and the floor: a client that keeps as many reads in flight as the copier does and
 * drops their bytes (bench/native/usrbio_floor.cc). Whole loads are timed, from the first process that starts to the
 * last that ends, the making of ring and buffers and the first touch of all memory included; medians of the rate as a
 * part of the link's.
 *
 * `npm run bench -- 3fs [--runs 5] [--processes 1,2,4,8] [--devices cpu,cuda:0] [--gib 1] [--option name=value …]`
 */
import { spawn, spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { emulators } from '../src/testing/index.js';

const TENSOR = 32 << 20;
const LINKS = [
  { gbPerSecond: 1, msPerJob: 10, least: 0.95 },
  { gbPerSecond: 2, msPerJob: 1, least: 0.92 },
];
/** Bytes of the baseline's buffer, both halves: as its original is published with. */
const BASELINE_BUFFER = 16e6;
const FLOOR_IN_FLIGHT = 32;

/** What one process prints; times in seconds, of one clock. */
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
  copier: number;
  baseline: number;
  floor: number;
  maxInFlight: number;
  least: number;
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

/** Starts the processes, lets them get ready, and sets them off together after `prepare`. */
async function together(commands: readonly string[][], env: NodeJS.ProcessEnv, prepare: () => void): Promise<Run[]> {
  const children = commands.map(([command, ...args]) =>
    spawn(command!, args, { env, stdio: ['pipe', 'pipe', 'inherit'] }),
  );
  await new Promise((resolve) => setTimeout(resolve, 300 + 200 * children.length));
  const runs = children.map(
    (child) =>
      new Promise<Run>((resolve, reject) => {
        let text = '';
        child.stdout.on('data', (part) => {
          text += part;
        });
        child.on('close', (code) =>
          code === 0 ? resolve(JSON.parse(text) as Run) : reject(new Error(`exit code ${code}`)),
        );
      }),
  );
  prepare();
  for (const child of children) child.stdin.end('go\n');
  return Promise.all(runs);
}

function medianOf(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

export interface Measurement {
  runs: number;
  processes: readonly number[];
  devices: readonly string[];
  gib: number;
  /** Of the loader. */
  options: object;
}

export async function measureThreeFs({ runs, processes, devices, gib, options }: Measurement): Promise<Row[]> {
  const build = join(__dirname, '..', '..', 'build', 'cmake');
  const native = ['usrbio_baseline', 'usrbio_floor', 'touch_memory'];
  const built = spawnSync('cmake', ['--build', build, '--parallel', '2', '--target', ...native]);
  if (built.status !== 0) throw new Error(`the baseline cannot be built: ${built.stderr}`);
  const folder = await mkdtemp(join(tmpdir(), 'fastsafetensors-bench-'));
  try {
    await mkdir(join(folder, '3fs-virt', 'iovs'), { recursive: true });
    const shards = Array.from({ length: Math.max(1, gib * 8) }, (_, i) => join(folder, `${100 + i}.safetensors`));
    for (const shard of shards) await writeShard(shard, 4);
    let links = 0;
    const memoryBytes = 1.2 * Math.max(shards.length, ...processes) * 4 * TENSOR;
    const touchMemory = (): void => void spawnSync(join(build, 'touch_memory'), [String(Math.ceil(memoryBytes))]);
    const rate = async (command: readonly string[], count: number, model: object, memory: string): Promise<Rate> => {
      const emulated = emulators.hf3fs.env({
        ...model,
        LINK: join(folder, `link-${links++}`),
        POISON: 0,
        THREADS: 2,
      });
      const env = { ...process.env, ...emulated, ...(memory === 'cpu' ? {} : emulators.cuda.env({ LEAKS: 'off' })) };
      // Every process the same amount: together as much as one alone, and at least one shard.
      const each = shards.slice(0, Math.max(1, Math.floor(shards.length / count)));
      const results = await together(new Array(count).fill([...command, ...each]), env, touchMemory);
      const bytes = results.reduce((sum, run) => sum + run.bytes, 0);
      const seconds = Math.max(...results.map(({ end }) => end)) - Math.min(...results.map(({ begin }) => begin));
      return { bytesPerSecond: bytes / seconds, maxInFlight: Math.max(...results.map((run) => run.maxInFlight)) };
    };
    const rows: Row[] = [];
    for (const memory of devices) {
      const commands = {
        copier: [process.execPath, join(__dirname, 'three-fs-child.js'), memory, JSON.stringify(options)],
        baseline: [join(build, 'usrbio_baseline'), folder, memory, String(BASELINE_BUFFER)],
        floor: [join(build, 'usrbio_floor'), folder, String(FLOOR_IN_FLIGHT)],
      };
      for (const { gbPerSecond, msPerJob, least } of LINKS) {
        const model = { BANDWIDTH: gbPerSecond * 1e9, LATENCY_MS: msPerJob };
        for (const count of processes) {
          const parts: Record<keyof typeof commands, number[]> = { copier: [], baseline: [], floor: [] };
          let maxInFlight = 0;
          for (let i = 0; i < runs; ++i) {
            for (const what of ['copier', 'baseline', 'floor'] as const) {
              const measured = await rate(commands[what], count, model, memory);
              parts[what].push(measured.bytesPerSecond / model.BANDWIDTH);
              if (what === 'copier') maxInFlight = Math.max(maxInFlight, measured.maxInFlight);
            }
          }
          const link = `${gbPerSecond} GB/s, ${msPerJob} ms a job`;
          const [copier, baseline, floor] = [parts.copier, parts.baseline, parts.floor].map(medianOf) as [
            number,
            number,
            number,
          ];
          rows.push({ link, memory, processes: count, copier, baseline, floor, maxInFlight, least });
          const all = parts.copier.map(percent).join(', ');
          const others = `baseline ${percent(baseline)}, floor ${percent(floor)}`;
          console.error(`${link}, ${memory}, ${count}: ${percent(copier)} (${all}; ${others})`);
        }
      }
    }
    return rows;
  } finally {
    await rm(folder, { recursive: true });
  }
}

interface Rate {
  bytesPerSecond: number;
  maxInFlight: number;
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
      gib: { type: 'string', default: '1' },
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
    gib: Number(values.gib),
    options,
  });
  console.table(
    rows.map(({ copier, baseline, floor, least, ...row }) => ({
      ...row,
      copier: percent(copier),
      baseline: percent(baseline),
      floor: percent(floor),
      ...(row.processes === 1 ? { 'at least': percent(least), holds: copier >= least } : {}),
    })),
  );
}
