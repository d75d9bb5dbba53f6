/**
 * Tensors of 20 KiB of a warm file, one by one in a random order, 16 at a time, and 16 by one call, beside safetensors'
 * safe_open: `npm run bench -- lazy [--folder /dev/shm] [--tensors 1000] [--rounds 7] [--peers]`. Medians of
 * interleaved rounds, in microseconds a tensor.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Command } from 'commander';
import { type DeviceTensor, fastsafeOpen } from '../src/index.js';
import { median } from './held.js';
import { pythonPeers } from './python.js';
import { writeFiles } from './write-files.js';

const TENSOR_BYTES = 20 * 1024;
const IN_FILE = 20_000;

/** Answers each line of names, JSON, with the microseconds that getting them took. */
const SAFE_OPEN = `
import json, sys, time
from safetensors import safe_open
with safe_open(sys.argv[1], 'np') as file:
    for line in sys.stdin:
        names = json.loads(line)
        began = time.perf_counter()
        for name in names:
            tensor = file.get_tensor(name)
        print((time.perf_counter() - began) * 1e6, flush=True)
`;

export function define(command: Command): void {
  command
    .option('--folder <path>', 'where the file is written', '/dev/shm')
    .option('--tensors <n>', 'tensors a round', '1000')
    .option('--rounds <n>', 'rounds', '7')
    .option('--peers', 'make a python with safetensors where there is none')
    .action(async ({ folder, tensors, rounds, peers }) => {
      const own = mkdtempSync(join(folder, 'fastsafetensors-bench-'));
      try {
        const [path] = writeFiles(own, { files: 1, tensors: IN_FILE }, TENSOR_BYTES * IN_FILE);
        await measure(path!, Number(tensors), Number(rounds), pythonPeers(Boolean(peers)));
      } finally {
        rmSync(own, { recursive: true });
      }
    });
}

async function measure(
  path: string,
  count: number,
  rounds: number,
  peer: ReturnType<typeof pythonPeers>,
): Promise<void> {
  await using opened = await fastsafeOpen(path);
  const names = opened.keys();
  const drop = (tensors: Iterable<DeviceTensor>): void => {
    for (const tensor of tensors) tensor.dispose();
  };
  const timed = async (work: () => Promise<void>): Promise<number> => {
    const began = performance.now();
    await work();
    return (performance.now() - began) * 1000;
  };
  const ways: Record<string, (wanted: readonly string[]) => Promise<number>> = {
    getTensor: (wanted) =>
      timed(async () => {
        for (const name of wanted) drop([await opened.getTensor(name)]);
      }),
    'getTensor, 16 at a time': (wanted) =>
      timed(async () => {
        for (let at = 0; at < wanted.length; at += 16)
          drop(await Promise.all(wanted.slice(at, at + 16).map((name) => opened.getTensor(name))));
      }),
    'getTensors of 16': (wanted) =>
      timed(async () => {
        for (let at = 0; at < wanted.length; at += 16)
          drop((await opened.getTensors(wanted.slice(at, at + 16))).values());
      }),
  };
  const python = 'python' in peer ? spawn(peer.python, ['-c', SAFE_OPEN, path], { stdio: 'pipe' }) : undefined;
  if (python) {
    const lines = createInterface(python.stdout)[Symbol.asyncIterator]();
    ways['safe_open (numpy)'] = async (wanted) => {
      python.stdin.write(`${JSON.stringify(wanted)}\n`);
      return Number((await lines.next()).value);
    };
  } else {
    console.log(`safe_open (numpy) is left out: ${'reason' in peer ? peer.reason : ''}`);
  }
  const took: Record<string, number[]> = Object.fromEntries(Object.keys(ways).map((way) => [way, []]));
  for (let round = -1; round < rounds; ++round) {
    for (const [way, run] of Object.entries(ways)) {
      const wanted = Array.from({ length: count }, () => names[Math.floor(Math.random() * names.length)]!);
      const microseconds = await run([...new Set(wanted)]);
      if (round >= 0) took[way]!.push(microseconds / new Set(wanted).size); // the first one warms up
    }
  }
  python?.stdin.end();
  for (const [way, list] of Object.entries(took)) console.log(`${way.padEnd(25)} ${median(list).toFixed(1)} us`);
}
