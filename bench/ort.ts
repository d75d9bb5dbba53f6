/**
 * A session of ONNX Runtime over 1 GiB of weights on a warm file system, until its first run has ended, and how much
 * memory it takes, beside onnxruntime-node's own ways: `npm run bench -- ort [--folder /dev/shm] [--layers 16]
 * [--rounds 5]`. A process of its own for each session, interleaved; medians.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { writeBigModel } from '../test/support/big-onnx.js';
import { median } from './held.js';
import type { Measured } from './ort-child.js';

/** 64 MiB a layer. */
const WIDTH = 4096;
const MIB = 1024 * 1024;
const WAYS = ['onnxruntime-node, path', 'onnxruntime-node, externalData', 'createSession'];

export function define(command: Command): void {
  command
    .option('--folder <path>', 'where the model is written', '/dev/shm')
    .option('--layers <n>', 'layers of 64 MiB', '16')
    .option('--rounds <n>', 'rounds', '5')
    .action(async ({ folder, layers, rounds }) => {
      const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
      try {
        const { graph, weights, bytes } = await writeBigModel(join(own, 'model'), Number(layers), WIDTH);
        measure(graph, weights, bytes, Number(rounds));
      } finally {
        rmSync(own, { recursive: true });
      }
    });
}

function measure(graph: string, weights: string, bytes: number, rounds: number): void {
  const found = new Map(WAYS.map((way) => [way, [] as Measured[]]));
  for (let round = 0; round < rounds; ++round)
    for (const way of WAYS) found.get(way)!.push(runChild(way, graph, weights));
  const sums = [...found.values()].flat().map(({ sum }) => sum);
  if (sums.some((sum) => Math.abs(sum / sums[0]! - 1) > 1e-3)) throw new Error(`outputs differ: ${sums.join(', ')}`);
  for (const [way, list] of found) {
    const of = (key: Exclude<keyof Measured, 'sum'>): number => median(list.map((one) => one[key]));
    const over = (of('peakBytes') - bytes) / MIB;
    const times = `created ${of('createdMs').toFixed(0)} ms, first run ${of('firstRunMs').toFixed(0)} ms, `;
    const rest = `later ones ${of('runMs').toFixed(0)} ms, ${(of('cpuMs') / 1000).toFixed(2)} s of processors, `;
    const memory = `peak weights ${over < 0 ? '-' : '+'} ${Math.abs(over).toFixed(0)} MiB`;
    const own = `of its own ${(of('privateBytes') / MIB).toFixed(0)} MiB`;
    console.log(`${way.padEnd(30)} ${times}${rest}${memory}, ${own}`);
  }
}

function runChild(way: string, graph: string, weights: string): Measured {
  const args = [join(__dirname, 'ort-child.js'), way, graph, weights];
  const { stdout, stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${way}: ${stderr}`);
  return JSON.parse(stdout) as Measured;
}
