/**
 * The 3FS copier over a modelled link that all processes share, beside a baseline that keeps one read in flight (bench/native/usrbio_baseline.cc). Whole loads are
 * timed, the making of ring and buffers and the first touch of all memory included; medians of the rate as a part of the link's.
 * `npm run bench -- 3fs [--runs 5] [--processes 1,2,4,8] [--gib 1] [--option name=value …]`
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

interface Run {
  bytes: number;
  seconds: number;
  maxInFlight: number;
}

export interface Row {
  link: string;
  memory: string;
  processes: number;
  /** Median part of the link's bandwidth. */
  copier: number;
  baseline: number;
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

/** Starts the processes, lets them get ready, and sets them off together. */
async function together(commands: readonly string[][], env: NodeJS.ProcessEnv): Promise<Run[]> {
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
  for (const child of children) child.stdin.end('go\n');
  return Promise.all(runs);
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

export async function measureThreeFs(
  runs: number,
  processes: readonly number[],
  gib: number,
  options: object,
): Promise<Row[]> {
  const build = join(__dirname, '..', '..', 'build', 'cmake');
  const built = spawnSync('cmake', ['--build', build, '--target', 'usrbio_baseline', '--parallel', '2']);
  if (built.status !== 0) throw new Error(`the baseline cannot be built: ${built.stderr}`);
  const folder = await mkdtemp(join(tmpdir(), 'fastsafetensors-bench-'));
  try {
    await mkdir(join(folder, '3fs-virt', 'iovs'), { recursive: true });
    const shards = Array.from({ length: Math.max(1, gib * 8) }, (_, i) => join(folder, `${100 + i}.safetensors`));
    for (const shard of shards) await writeShard(shard, 4);
    const rows: Row[] = [];
    for (const memory of ['cpu', 'cuda:0']) {
      for (const { gbPerSecond, msPerJob, least } of LINKS) {
        for (const count of processes) {
          // Every process the same amount: together as much as one alone, and at least one shard.
          const each = shards.slice(0, Math.max(1, Math.floor(shards.length / count)));
          const parts: { copier: number[]; baseline: number[] } = { copier: [], baseline: [] };
          let maxInFlight = 0;
          for (let i = 0; i < runs; ++i) {
            for (const what of ['copier', 'baseline'] as const) {
              const env = {
                ...process.env,
                ...emulators.hf3fs.env({
                  BANDWIDTH: gbPerSecond * 1e9,
                  LATENCY_MS: msPerJob,
                  LINK: join(folder, `link-${rows.length}-${i}-${what}`),
                  POISON: 0,
                  THREADS: 2,
                }),
                ...(memory === 'cpu' ? {} : emulators.cuda.env()),
              };
              const child = [process.execPath, join(__dirname, 'three-fs-child.js'), memory, JSON.stringify(options)];
              const other = [join(build, 'usrbio_baseline'), folder, memory, String(BASELINE_BUFFER)];
              const command = [...(what === 'copier' ? child : other), ...each];
              const results = await together(new Array(count).fill(command), env);
              const bytes = results.reduce((sum, run) => sum + run.bytes, 0);
              const seconds = Math.max(...results.map((run) => run.seconds));
              parts[what].push(bytes / seconds / (gbPerSecond * 1e9));
              if (what === 'copier') maxInFlight = Math.max(maxInFlight, ...results.map((run) => run.maxInFlight));
            }
          }
          rows.push({
            link: `${gbPerSecond} GB/s, ${msPerJob} ms a job`,
            memory,
            processes: count,
            copier: median(parts.copier),
            baseline: median(parts.baseline),
            maxInFlight,
            least,
          });
          const { link, copier, baseline } = rows.at(-1)!;
          console.error(`${link}, ${memory}, ${count}: ${percent(copier)} (baseline ${percent(baseline)})`);
        }
      }
    }
    return rows;
  } finally {
    await rm(folder, { recursive: true });
  }
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
      gib: { type: 'string', default: '1' },
      option: { type: 'string', multiple: true, default: [] },
    },
  });
  const options = Object.fromEntries(
    values.option.map((text) => [text.split('=')[0]!, Number(text.split('=')[1])] as const),
  );
  const processes = values.processes.split(',').map(Number);
  const rows = await measureThreeFs(Number(values.runs), processes, Number(values.gib), options);
  console.table(
    rows.map(({ copier, baseline, least, ...row }) => ({
      ...row,
      copier: percent(copier),
      baseline: percent(baseline),
      ...(row.processes === 1 ? { 'at least': percent(least), holds: copier >= least } : {}),
    })),
  );
}
