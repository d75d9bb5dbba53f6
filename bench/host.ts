/**
 * Files into host memory, until each page of each tensor was touched, beside what the hardware can do and beside other
 * loaders: `npm run bench -- host [--cold] [--peers] [--rows one,8] [--folder /dev/shm] [--mib 1024] [--rounds 7]
 * [--json FILE] [--chart FILE]`. The rounds are interleaved, all figures medians. In as many rounds before
 * those each way has a new process, whose only load is a first one; the last of them goes on, for the later ones, and
 * for those that follow a load at once ("again"), for which a loader may have kept its memory. Before any other load
 * that copies, so much memory is touched and freed: it finds the machine's own.
 */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { SafeTensorsMetadata } from '../src/index.js';
import { median } from './held.js';
import type { Load } from './host-child.js';
import { pythonPeers, versionsOf, withOther } from './python.js';
import { writeFiles } from './write-files.js';

const PAGE = 4096;
const MIB = 1024 * 1024;
/** As many threads as bring pages in for a load: csrc/transfer/loop.cc PopulatingThreads. */
const THREADS = Math.min(Math.max(availableParallelism(), 2), 8);
const ROWS: Readonly<Record<string, { files: number; tensors: number }>> = {
  'one file': { files: 1, tensors: 64 },
  '8 shards': { files: 8, tensors: 8 },
  '1,000 files': { files: 1000, tensors: 1 },
  '50,000 tensors': { files: 1, tensors: 50_000 },
};
const OURS = [
  'default, streamed',
  'mapped, streamed',
  'mapped, whole',
  'copied, streamed',
  'copied, whole',
  'lazy, one by one',
];
const COLD = ['default, streamed', 'mapped, streamed', 'copied, streamed'];
const OLDER = 'safetensors==0.8.0';
/** Each with the function of host_peers.py that loads, and a package of another version. */
const PEERS: Readonly<Record<string, { loader?: string; other?: string }>> = {
  safetensors_mapped: {},
  'safetensors 0.8 mapped': { loader: 'safetensors_mapped', other: OLDER },
  safetensors_pread: {},
  safetensors_numpy: {},
  fastsafetensors: {},
  runai: {},
};
const PACKAGES = [
  'numpy',
  'safetensors>=0.9.0rc1',
  'torch',
  'fastsafetensors==0.5.0',
  'runai-model-streamer',
  'matplotlib',
];
/** What the way before unmaps and frees, some of it in the background, is done by then. */
const UNMAPPED_MS = 200;
const MAPPED = /^mapp|^safetensors.*mapped/;
/** As those, where the files are warm. */
const DEFAULT = /^default/;
/** Characters that fio takes as names of files. */
const FIO_NAMES = 4096;
const BUILD = join(__dirname, '..', '..', 'build', 'cmake');
const SOURCES = join(__dirname, '..', '..', 'bench');

/** What one way did with the files of one row. */
interface Figures {
  readonly row: string;
  readonly way: string;
  /** The medians of first loads of a process; none of a floor, whose every run is one. */
  readonly first?: Load;
  readonly later: Load;
  /** What memory holds at least: the weights, or where files are mapped the pages that they lie in. */
  readonly leastBytes: number;
  /** Of those that came at once after one of these; none of a floor, and not of cold loads. */
  readonly againSeconds?: number;
}

interface Way {
  /** Takes a new process in place of the one that it has, if it has one. */
  renew(): Promise<void>;
  load(files: readonly string[]): Promise<Load>;
  end(): void;
}

interface Options {
  readonly cold?: boolean;
  readonly peers?: boolean;
  readonly only?: string;
  readonly rows?: string;
  readonly folder: string;
  readonly mib: string;
  readonly rounds: string;
  readonly json?: string;
  readonly chart?: string;
}

export function define(command: Command): void {
  command
    .option('--cold', 'drop the files from the page cache before each load (a folder on a disk)')
    .option('--peers', 'loaders for Python as well; makes a python that has them where there is none (several GB)')
    .option('--only <texts>', 'ways with one of these texts in their name, by commas')
    .option('--rows <texts>', 'rows with one of these texts in their name, by commas')
    .option('--folder <path>', 'where the files are written', '/dev/shm')
    .option('--mib <n>', 'MiB of weights', '1024')
    .option('--rounds <n>', 'rounds of first loads, and of later ones', '7')
    .option('--json <file>', 'write all figures there, with what machine it was')
    .option('--chart <file>', 'draw the later loads there, as SVG (by matplotlib)')
    .action(measure);
}

async function measure(options: Options): Promise<void> {
  const targets = ['mapping_floor', 'copying_floor', 'drop_cache', 'touch_memory'];
  const built = spawnSync('cmake', ['--build', BUILD, '--target', ...targets], { encoding: 'utf8' });
  if (built.status !== 0) throw new Error(`the floors cannot be built: ${built.stdout}${built.stderr}`);
  const peers = options.peers || options.chart ? pythonPeers(true, PACKAGES) : { reason: 'ask for them by --peers' };
  const chosen = (name: string, texts: string | undefined): boolean =>
    texts === undefined || texts.split(',').some((text) => name.includes(text));
  const figures: Figures[] = [];
  for (const [row, shape] of Object.entries(ROWS)) {
    if (!chosen(row, options.rows)) continue;
    const own = mkdtempSync(join(options.folder, 'fastsafetensors-bench-'));
    try {
      const files = writeFiles(own, shape, Number(options.mib) * MIB);
      const ways = await waysOf(files, options, peers, (name) => chosen(name, options.only));
      for (const found of await measureRow(row, files, ways, options)) figures.push(found);
      for (const found of figures.filter((other) => other.row === row)) print(found, figures, options);
    } finally {
      rmSync(own, { recursive: true });
    }
  }
  const machine = { cpu: cpus()[0]?.model, cpus: availableParallelism(), memory: totalmem(), kernel: release() };
  const versions = 'python' in peers ? versionsOf(peers.python, PACKAGES) : {};
  const facts = { machine, node: process.version, versions, date: new Date().toISOString(), options, figures };
  if ('safetensors' in versions) console.log(Object.entries(versions).flat().join(' '));
  if (options.json) writeFileSync(options.json, `${JSON.stringify(facts, null, 1)}\n`);
  if (options.chart && 'python' in peers) draw(peers.python, options.chart, facts);
}

async function waysOf(
  files: readonly string[],
  { cold, peers: asked }: Options,
  peers: ReturnType<typeof pythonPeers>,
  chosen: (name: string) => boolean,
): Promise<Map<string, Way>> {
  const ways = new Map<string, Way>();
  for (const name of ['mapping_floor', 'copying_floor']) if (chosen(name)) ways.set(name, floor(name));
  if (cold && chosen('fio')) addFio(ways, files);
  for (const name of [...(cold ? COLD : OURS), 'fs.readFileSync']) {
    if (chosen(name))
      ways.set(name, await child(process.execPath, ['--expose-gc', join(__dirname, 'host-child.js'), name]));
  }
  if (!asked) return ways;
  if (!('python' in peers)) console.log(`left out: loaders for Python: ${peers.reason}`);
  for (const [name, { loader = name, other }] of 'python' in peers ? Object.entries(PEERS) : []) {
    if (!chosen(name)) continue;
    try {
      const { python } = peers as { python: string };
      const env = other ? withOther(python, other) : {};
      ways.set(name, await child(python, [join(SOURCES, 'host_peers.py'), loader], env));
    } catch (error) {
      console.log(`left out: ${name}: ${(error as Error).message}`);
    }
  }
  return ways;
}

function floor(program: string): Way {
  return {
    load: async (files) => {
      const { stdout, status } = spawnSync(join(BUILD, program), [String(THREADS), ...files], { encoding: 'utf8' });
      if (status !== 0) throw new Error(`${program} failed`);
      return { seconds: Number.parseFloat(stdout), cpuSeconds: 0, peakBytes: 0, bytes: 0 };
    },
    renew: async () => {},
    end: () => {},
  };
}

/** Direct reads of 1 MiB, 16 at a time, as a cold load makes them. */
function addFio(ways: Map<string, Way>, files: readonly string[]): void {
  const filename = files.join(':');
  if (filename.length > FIO_NAMES) {
    console.log(`left out: fio: it takes no list of ${files.length} files`);
    return;
  }
  if (spawnSync('fio', ['--version']).status !== 0) {
    console.log('left out: fio: it is not installed (apt-get install fio)');
    return;
  }
  const job = ['--name=read', '--rw=read', '--readonly', '--direct=1', '--bs=1M', '--ioengine=libaio', '--iodepth=16'];
  ways.set('fio', {
    load: async () => {
      const args = [...job, '--output-format=json', `--filename=${filename}`];
      const { stdout, stderr, status } = spawnSync('fio', args, { encoding: 'utf8' });
      if (status !== 0) throw new Error(`fio failed: ${stderr}`);
      const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as { jobs: { read: { runtime: number } }[] };
      return { seconds: jobs[0]!.read.runtime / 1000, cpuSeconds: 0, peakBytes: 0, bytes: 0 };
    },
    renew: async () => {},
    end: () => {},
  });
}

async function child(...how: Parameters<typeof start>): Promise<Way> {
  let { next, stdin } = await start(...how); // a way that cannot be had says so at once
  return {
    renew: async () => {
      stdin.end();
      ({ next, stdin } = await start(...how));
    },
    load: async (files) => {
      stdin.write(`${JSON.stringify(files)}\n`);
      let line = await next();
      while (!line.startsWith('{')) line = await next(); // a loader that prints
      return JSON.parse(line) as Load;
    },
    end: () => stdin.end(),
  };
}

async function start(
  command: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<{ next(): Promise<string>; stdin: Writable }> {
  const started = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, ...env } });
  let complaints = '';
  started.stderr.on('data', (text) => (complaints += text));
  started.stdin.on('error', () => {}); // the lines end, which says as much
  const lines = createInterface(started.stdout)[Symbol.asyncIterator]();
  const next = async (): Promise<string> => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`${args.join(' ')} ended: ${complaints.trim().split('\n').pop()}`);
    return value;
  };
  while ((await next()) !== 'ready') {}
  return { next, stdin: started.stdin };
}

async function measureRow(
  row: string,
  files: readonly string[],
  ways: Map<string, Way>,
  { rounds, cold, mib }: Options,
): Promise<Figures[]> {
  const bytes = Number(mib) * MIB;
  const empty = <T>(): Map<string, T[]> => new Map([...ways.keys()].map((way) => [way, []]));
  const firsts = empty<Load>();
  const loads = empty<Load>();
  const again = empty<number>();
  const order = [...ways];
  try {
    for (let round = 0; round < 2 * Number(rounds); ++round) {
      const isFirst = round < Number(rounds);
      const turn = round % ways.size; // none always follows the same other
      for (const [name, way] of [...order.slice(turn), ...order.slice(0, turn)]) {
        if (round > 0 && isFirst) await way.renew();
        await sleep(UNMAPPED_MS);
        if (cold && spawnSync(join(BUILD, 'drop_cache'), [...files]).status !== 0) throw new Error('drop_cache failed');
        // Else the first load after a pause pays for memory that a virtual machine's host has taken back.
        if (!isMapped(name, cold)) spawnSync(join(BUILD, 'touch_memory'), [String(Math.ceil(bytes * 1.25)), 'now']);
        (isFirst ? firsts : loads).get(name)!.push(await way.load(files));
        if (!cold && !isFirst) again.get(name)!.push((await way.load(files)).seconds);
      }
    }
  } finally {
    for (const way of ways.values()) way.end();
  }
  const pageBytes = await pagesOf(files);
  return [...loads].map(([way, others]) => {
    const leastBytes = isMapped(way, cold) ? pageBytes : bytes;
    const first = medians(firsts.get(way)!);
    const later = { ...medians(others), bytes };
    if (first.bytes === 0) return { row, way, later, leastBytes };
    if (Math.abs(first.bytes / bytes - 1) > 0.01) throw new Error(`${way} loaded ${first.bytes} of ${bytes} bytes`);
    const followed = again.get(way)!;
    const followers = followed.length > 0 && { againSeconds: median(followed) };
    return { row, way, first, later, leastBytes, ...followers };
  });
}

/** Whether a way's tensors are views of the files. */
function isMapped(way: string, cold = false): boolean {
  return MAPPED.test(way) || (!cold && DEFAULT.test(way));
}

/** Bytes of the pages that hold data of the files. */
async function pagesOf(files: readonly string[]): Promise<number> {
  let bytes = 0;
  for (const file of files) {
    const { dataStart, sizeBytes } = await SafeTensorsMetadata.fromFile(file);
    bytes += (Math.ceil(sizeBytes / PAGE) - Math.floor(dataStart / PAGE)) * PAGE;
  }
  return bytes;
}

function medians(loads: readonly Load[]): Load {
  const of = (key: keyof Load): number => median(loads.map((load) => load[key] ?? 0));
  const held = loads[0]!.heldMs !== undefined && { heldMs: of('heldMs') };
  return {
    seconds: of('seconds'),
    cpuSeconds: of('cpuSeconds'),
    peakBytes: of('peakBytes'),
    bytes: of('bytes'),
    ...held,
  };
}

/** A line of the table. The share is of the floor that belongs to the way: of mapping, else of what copies. */
function print(
  { row, way, first, later, leastBytes, againSeconds }: Figures,
  all: readonly Figures[],
  { cold }: Options,
): void {
  const floors = isMapped(way, cold) ? ['mapping_floor'] : ['fio', 'copying_floor'];
  const least = floors.map((name) => all.find((other) => other.row === row && other.way === name)).find(Boolean);
  const rate = (seconds: number): string => `${(later.bytes / seconds / 1e9).toFixed(2)} GB/s`.padStart(11);
  const parts = [row.padEnd(15), way.padEnd(22), rate(later.seconds)];
  parts.push(least ? `${((least.later.seconds / later.seconds) * 100).toFixed(0).padStart(4)} %` : '      ');
  if (first) {
    const over = (first.peakBytes - leastBytes) / MIB;
    parts.push(`  first ${rate(first.seconds)}`, ...(againSeconds ? [`  again ${rate(againSeconds)}`] : []));
    parts.push(`  ${later.cpuSeconds.toFixed(3)} s of processors`);
    parts.push(`  first peak ${over < 0 ? '' : '+'}${over.toFixed(0)} MiB`);
  }
  if (later.heldMs !== undefined) parts.push(`  loop held ${later.heldMs.toFixed(1)} ms`);
  console.log(parts.join(' '));
}

function draw(python: string, chart: string, facts: object): void {
  const input = JSON.stringify(facts);
  const drawn = spawnSync(python, [join(SOURCES, 'host_chart.py'), chart], { input, encoding: 'utf8' });
  if (drawn.status !== 0) throw new Error(`the chart cannot be drawn: ${drawn.stderr}`);
}
