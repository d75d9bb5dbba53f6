/** What importing costs: a process that does it, beside one that does nothing. `npm run bench -- import`. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

const RUNS = 20;
const TOP = join(__dirname, '..', '..');

/** Packages beside ours, where they are installed. */
const OTHERS = ['onnxruntime-node', 'sharp', 'better-sqlite3'];

const EMPTY = ['-e', '0'];
const CASES: Readonly<Record<string, readonly string[]>> = {
  "require('fastsafetensors-node')": ['-e', "require('fastsafetensors-node')"],
  "require('fastsafetensors-node/ort')": ['-e', "require('fastsafetensors-node/ort')"],
  "require('fastsafetensors-node/tfjs')": ['-e', "require('fastsafetensors-node/tfjs')"],
  "import 'fastsafetensors-node'": ['--input-type=module', '-e', "import 'fastsafetensors-node'"],
  ...Object.fromEntries(OTHERS.map((name) => [`require('${name}')`, ['-e', `require('${name}')`]])),
};

/** Milliseconds of a process; undefined where it fails. */
function run(args: readonly string[]): number | undefined {
  const started = performance.now();
  const { status } = spawnSync(process.execPath, args, { cwd: TOP, stdio: 'ignore' });
  return status === 0 ? performance.now() - started : undefined;
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
}

export function printImport(): void {
  const there = Object.entries(CASES).filter(([, args]) => run(args) !== undefined);
  const columns = [EMPTY, ...there.map(([, args]) => args)];
  const times: number[][] = columns.map(() => []);
  // Side by side, so that whatever else the machine does meets all of them.
  for (let i = 0; i < RUNS; ++i) for (const [column, args] of columns.entries()) times[column]!.push(run(args)!);
  const [empty, ...medians] = times.map(median);
  console.log(
    `node ${process.version}, median of ${RUNS}: an empty process takes ${empty!.toFixed(1)} ms; more than that:`,
  );
  for (const [i, [name]] of there.entries()) {
    console.log(`${(medians[i]! - empty!).toFixed(1).padStart(7)} ms  ${name}`);
  }
  for (const name of OTHERS.map((other) => `require('${other}')`))
    if (!there.some(([case_]) => case_ === name)) console.log(`      -      ${name}: not installed`);
}
