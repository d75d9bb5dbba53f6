/**
 * Tensors of 20 KiB of a warm file, one by one in a random order, 16 at a time, and 16 by one call, beside safetensors'
 * safe_open: `npm run bench -- lazy [--folder /dev/shm] [--tensors 1000] [--rounds 7] [--peers]`. Medians of
 * groups of 16, of interleaved rounds, in microseconds a tensor. Ours until each page of `data` was touched, since it
 * may be a view of the file; safe_open copies each byte, and nothing more is touched.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Command } from 'commander';
import { type DeviceTensor, fastsafeOpen, type LoaderOptions, type OpenFiles } from '../src/index.js';
import { median } from './held.js';
import { pythonPeers } from './python.js';
import { writeFiles } from './write-files.js';

const TENSOR_BYTES = 20 * 1024;
const IN_FILE = 20_000;
/** Tensors that are timed together, so that what else runs on the machine shows in few figures. */
const GROUP = 16;
/** Rounds before those that count. */
const WARMING = 3;

/** Answers each line of groups of names, JSON, with the microseconds that getting each group took. */
const SAFE_OPEN = `
import json, sys, time
from safetensors import safe_open
with safe_open(sys.argv[1], 'np') as file:
    for line in sys.stdin:
        took = []
        for names in json.loads(line):
            began = time.perf_counter()
            for name in names:
                tensor = file.get_tensor(name)
            took.append((time.perf_counter() - began) * 1e6)
        print(json.dumps(took), flush=True)
`;

/** One round: the microseconds of each group. */
type Way = () => Promise<number[]>;
/** Gets a group, and touches it. */
type Work = (opened: OpenFiles, group: readonly string[]) => Promise<void>;

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
  const timed = async (opened: OpenFiles, wanted: readonly string[], work: Work): Promise<number[]> => {
    const took: number[] = [];
    for (const group of groups(wanted)) {
      const began = performance.now();
      await work(opened, group);
      took.push((performance.now() - began) * 1000);
    }
    return took;
  };
  const getTensor: Work = async (opened, group) => {
    for (const name of group) use([await opened.getTensor(name)]);
  };
  const atATime: Work = async (opened, group) => {
    use(await Promise.all(group.map((name) => opened.getTensor(name))));
  };
  const getTensors: Work = async (opened, group) => {
    use((await opened.getTensors(group)).values());
  };
  const files: OpenFiles[] = [];
  const open = async (options: LoaderOptions = {}): Promise<OpenFiles> => {
    const opened = await fastsafeOpen(path, options);
    files.push(opened);
    return opened;
  };
  // Each way opens the file for itself, and asks once for each tensor: a second time, it is copied.
  const ours = async (work: Work, options?: LoaderOptions): Promise<Way> => {
    const opened = await open(options);
    const left = shuffled(opened.keys());
    return () => timed(opened, left.splice(0, count), work);
  };
  const again = await open();
  const often = shuffled(again.keys()).slice(0, count);
  const ways: Record<string, Way> = {
    getTensor: await ours(getTensor),
    'getTensor, 16 at a time': await ours(atATime),
    'getTensors of 16': await ours(getTensors),
    'getTensor, the same again': () => timed(again, often, getTensor),
    'getTensor, mmap: false': await ours(getTensor, { mmap: false }),
    'getTensors of 16, mmap: false': await ours(getTensors, { mmap: false }),
  };
  const python = 'python' in peer ? spawn(peer.python, ['-c', SAFE_OPEN, path], { stdio: 'pipe' }) : undefined;
  if (python) {
    const lines = createInterface(python.stdout)[Symbol.asyncIterator]();
    const names = again.keys();
    ways['safe_open (numpy)'] = async () => {
      python.stdin.write(`${JSON.stringify(groups(shuffled(names).slice(0, count)))}\n`);
      return JSON.parse((await lines.next()).value) as number[];
    };
  } else {
    console.log(`safe_open (numpy) is left out: ${'reason' in peer ? peer.reason : ''}`);
  }
  const took: Record<string, number[]> = Object.fromEntries(Object.keys(ways).map((way) => [way, []]));
  for (let round = -WARMING; round < rounds; ++round) {
    for (const [way, run] of Object.entries(ways)) {
      const groups = await run();
      if (round >= 0) took[way]!.push(...groups);
    }
    if (round < 0) await new Promise((resolve) => setTimeout(resolve, 200)); // for what is mapped meanwhile
  }
  python?.stdin.end();
  for (const opened of files) await opened.close();
  for (const [way, list] of Object.entries(took))
    console.log(`${way.padEnd(30)} ${(median(list) / GROUP).toFixed(2).padStart(6)} us`);
}

function groups(names: readonly string[]): string[][] {
  return Array.from({ length: Math.floor(names.length / GROUP) }, (_, i) => names.slice(i * GROUP, (i + 1) * GROUP));
}

/** Touches each page and disposes. */
function use(tensors: Iterable<DeviceTensor>): void {
  let sum = 0;
  for (const tensor of tensors) {
    const data = tensor.data as Float32Array;
    for (let i = 0; i < data.length; i += 1024) sum += data[i]!;
    tensor.dispose();
  }
  if (!(sum > 0)) throw new Error('the tensors hold other numbers than were written');
}

function shuffled(names: readonly string[]): string[] {
  const list = [...names];
  for (let i = list.length - 1; i > 0; --i) {
    const other = Math.floor(Math.random() * (i + 1));
    [list[i], list[other]] = [list[other]!, list[i]!];
  }
  return list;
}
