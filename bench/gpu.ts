import { execFileSync, spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Command } from 'commander';
import {
  type DeviceTensor,
  fastsafeOpen,
  ParallelLoader,
  ParallelThreeFSLoader,
  SafeTensorsFileLoader,
} from '../src/index.js';
import { emulators } from '../src/testing/index.js';

// A model onto a real GPU, from files that the page cache holds: this package, loaders for Python where they are
// installed, and what the hardware can do.

const TOP = join(__dirname, '..', '..');
/** Shapes of a layer of a model of 8 billion parameters, in BF16. */
const LAYER: readonly (readonly [string, readonly number[]])[] = [
  ['input_layernorm.weight', [4096]],
  ['mlp.down_proj.weight', [4096, 14336]],
  ['mlp.gate_proj.weight', [14336, 4096]],
  ['mlp.up_proj.weight', [14336, 4096]],
  ['post_attention_layernorm.weight', [4096]],
  ['self_attn.k_proj.weight', [1024, 4096]],
  ['self_attn.o_proj.weight', [4096, 4096]],
  ['self_attn.q_proj.weight', [4096, 4096]],
  ['self_attn.v_proj.weight', [1024, 4096]],
];
const PEERS = [
  'safetensors',
  'safetensors_prefetch',
  'fastsafetensors',
  'fastsafetensors_parallel',
  'instanttensor',
  'runai',
];

interface Options {
  layers: number;
  files: number;
  runs: number;
  folder: string;
  python: string;
  case?: string;
}

interface Times {
  seconds: number[];
  tensors: number;
  /** Of the reports: how else than asked was read. */
  notes?: string[];
}

export function define(command: Command): void {
  command
    .description('loads a model onto cuda:0 from the page cache, beside other loaders and what the hardware can do')
    .option('--layers <n>', 'layers of 416 MiB', Number, 16)
    .option('--files <n>', 'files that they are spread over', Number, 4)
    .option('--runs <n>', 'runs of each loader in one process', Number, 6)
    .option('--folder <path>', 'where the model is written', tmpdir())
    .option('--python <path>', 'the python that has the other loaders', 'python3')
    .option('--case <json>', 'one of our own loaders here (used by this benchmark itself)')
    .action(async (options: Options) => {
      if (options.case) {
        console.log(JSON.stringify(await measure(JSON.parse(options.case) as Case)));
        return;
      }
      const folder = mkdtempSync(join(options.folder, 'fastsafetensors-gpu-'));
      try {
        mkdirSync(join(folder, '3fs-virt', 'iovs'), { recursive: true }); // the emulated 3FS takes it for a mount
        compare(options, writeModel(folder, options.layers, options.files));
      } finally {
        rmSync(folder, { recursive: true });
      }
    });
}

function writeModel(folder: string, layers: number, files: number): { paths: string[]; bytes: number } {
  const block = randomFillSync(new Uint8Array(64 << 20));
  let bytes = 0;
  const paths: string[] = [];
  for (let file = 0; file < files; ++file) {
    const header: Record<string, unknown> = {};
    let at = 0;
    for (let layer = file; layer < layers; layer += files) {
      for (const [name, shape] of LAYER) {
        const length = 2 * shape.reduce((a, b) => a * b, 1);
        header[`model.layers.${layer}.${name}`] = { dtype: 'BF16', shape, data_offsets: [at, at + length] };
        at += length;
      }
    }
    const json = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(json.length));
    const path = join(folder, `model-${file}.safetensors`);
    const fd = openSync(path, 'wx');
    writeSync(fd, length);
    writeSync(fd, json);
    for (let left = at; left > 0; ) left -= writeSync(fd, block, 0, Math.min(left, block.length));
    closeSync(fd);
    paths.push(path);
    bytes += at;
  }
  return { paths, bytes };
}

function compare({ runs, python }: Options, { paths, bytes }: { paths: string[]; bytes: number }): void {
  execFileSync('cat', paths, { stdio: ['ignore', 'ignore', 'inherit'] }); // into the page cache
  const build = join(TOP, 'build', 'cmake');
  const floorProgram = join(build, 'gpu_floor');
  if (!existsSync(floorProgram)) execFileSync('cmake', ['--build', build, '--target', 'gpu_floor']);
  const floor = [4, 8, 16].map((threads) => {
    const said = JSON.parse(execFileSync(floorProgram, [String(threads), ...paths], { encoding: 'utf8' }));
    console.log(`floor, ${threads} threads: ${JSON.stringify(said)}`);
    return said as { copies: number; reads: number; both: number };
  });
  const best = Math.max(...floor.map(({ both }) => both));
  console.log(
    `${(bytes / 1e9).toFixed(2)} GB in ${paths.length} files, ${availableParallelism()} CPUs; ` +
      `reading and copying at once: ${best.toFixed(2)} GB/s`,
  );
  const row = (name: string, { seconds: [cold, ...warm], tensors }: Times): void => {
    const seconds = warm.toSorted((a, b) => a - b)[warm.length >> 1]!;
    const rate = (s: number) => (bytes / s / 1e9).toFixed(2);
    const part = ((100 * bytes) / seconds / 1e9 / best).toFixed(0);
    console.log(
      `${name.padEnd(40)} ${rate(seconds)} GB/s, ${part} % of the floor; first load ${rate(cold!)} GB/s; ` +
        `${tensors} tensors`,
    );
  };
  const ours = (loader: Case['loader'], staging?: 'mapped'): void => {
    const what: Case = { loader, paths, runs, staging };
    // The emulated client reads ordinary files on threads of its own.
    const emulated = emulators.hf3fs.env({ POISON: 0, THREADS: 16, LINK: join(dirname(paths[0]!), 'link') });
    const env = { ...process.env, ...(loader === 'ParallelThreeFSLoader' ? emulated : {}) };
    const args = [join(__dirname, 'main.js'), 'gpu', '--case', JSON.stringify(what)];
    const ended = spawnSync(process.execPath, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], env });
    if (ended.status !== 0) throw new Error(`${loader} ended with ${ended.status ?? ended.signal}`);
    const { notes = [], ...times } = JSON.parse(ended.stdout) as Times;
    row(staging ? `${loader}, staging: '${staging}'` : loader, times);
    for (const note of notes) console.log(`  ${note}`);
  };
  const theirs = (peer: string): void => {
    const args = [join(TOP, 'bench', 'gpu_peers.py'), peer, String(runs), ...paths];
    const ended = spawnSync(python, args, { encoding: 'utf8', timeout: 120_000 });
    if (ended.status !== 0) {
      console.log(`${peer}: did not run: ${ended.stderr.trim().split('\n').slice(-3).join(' | ')}`);
      return;
    }
    row(`${peer} (Python)`, JSON.parse(ended.stdout.trim().split('\n').at(-1)!));
  };
  ours('ParallelLoader');
  ours('ParallelLoader', 'mapped');
  for (const peer of PEERS) theirs(peer);
  ours('SafeTensorsFileLoader');
  ours('ParallelThreeFSLoader');
  ours('ParallelLoader');
  ours('ParallelLoader', 'mapped');
}

interface Case {
  loader: 'ParallelLoader' | 'SafeTensorsFileLoader' | 'ParallelThreeFSLoader';
  paths: string[];
  runs: number;
  staging?: 'mapped';
}

async function measure({ loader, paths, runs, staging }: Case): Promise<Times> {
  const device = 'cuda:0';
  const files = await fastsafeOpen(paths, { device: 'cpu' });
  const onDevice = await fastsafeOpen(paths[0]!, { device });
  (await onDevice.getTensor(onDevice.keys()[0]!)).dispose(); // makes the context, which the other loaders have as well
  await onDevice.close();
  const seconds: number[] = [];
  const notes = new Set<string>();
  let tensors = 0;
  for (let run = 0; run < runs; ++run) {
    const kept = new Map<string, DeviceTensor>();
    const start = performance.now();
    if (loader !== 'SafeTensorsFileLoader') {
      const options = { files: paths, device, ...(staging && { staging }) };
      await using parallel =
        loader === 'ParallelLoader' ? new ParallelLoader(options) : new ParallelThreeFSLoader(options);
      for await (const [name, tensor] of parallel.iterateWeights()) kept.set(name, tensor);
      seconds.push((performance.now() - start) / 1000);
      for (const note of parallel.report.notes) notes.add(note);
    } else {
      await using whole = new SafeTensorsFileLoader({ device });
      await whole.addFilenames(paths);
      await using buffers = await whole.copyFilesToDevice();
      for (const name of whole.keys()) kept.set(name, await buffers.getTensor(name));
      seconds.push((performance.now() - start) / 1000);
    }
    tensors = kept.size;
    for (const [i, [name, tensor]] of [...kept].entries()) {
      if (run === runs - 1 && i % 16 === 0) await checkEqual(name, tensor, await files.getTensor(name));
      tensor.dispose();
    }
  }
  await files.close();
  return { seconds, tensors, notes: [...notes] };
}

async function checkEqual(name: string, found: DeviceTensor, expected: DeviceTensor): Promise<void> {
  if (Buffer.compare(await found.toHost(), await expected.toHost()) !== 0) throw new Error(`${name} has wrong bytes`);
  expected.dispose();
}
