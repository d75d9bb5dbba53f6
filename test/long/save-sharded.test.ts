import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type DeviceTensor, fastsafeOpen, loadFile, saveSharded } from 'fastsafetensors-node';
import { runChild } from '../support/child.js';
import { expectNothingHeld } from '../support/metrics.js';
import { newFolder } from '../support/model-files.js';
import { seed } from '../support/random-ends.js';

// Sets of files that are killed amid their making, and a model that is larger than the memory that resharding it takes.

let folder: string;
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

/** The number of the set that the folder holds, whole; or the code with which it is refused. */
async function found(path: string): Promise<number | string> {
  let tensors: Record<string, DeviceTensor>;
  try {
    tensors = await loadFile(path);
  } catch (error) {
    return (error as { code: string }).code;
  }
  const all = Object.values(tensors);
  const bytes = new Set(all.flatMap(({ data }) => [...new Set(data as Uint8Array)]));
  const count = all.length;
  for (const tensor of all) tensor.dispose();
  const [number = 0] = bytes;
  expect([bytes.size, count]).toEqual([1, 3 + (number % 3)]);
  return number;
}

/** How long a save takes here and now: kills are to come amid one. */
async function msOfASave(script: string): Promise<number> {
  const child = spawn(process.execPath, [script, join(folder, 'timed'), '1'], { stdio: ['ignore', 'pipe', 'inherit'] });
  const closed = once(child, 'close');
  await once(child.stdout, 'data');
  const began = performance.now();
  for (let i = 0; i < 5; ++i) await once(child.stdout, 'data');
  const ms = (performance.now() - began) / 5;
  child.kill('SIGKILL');
  await closed;
  return ms;
}

test('killed at 50 random moments, the folder holds the old set or the new one, or is refused', async () => {
  const out = join(folder, 'out');
  let state = seed;
  const random = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const script = join(__dirname, '..', 'save-sharded.child.cjs');
  const aSaveMs = await msOfASave(script);
  const seen = { old: 0, new: 0, refused: 0 };
  let last = 0; // the set of which it is known that it was written
  for (let kill = 0; kill < 50; ++kill) {
    const child = spawn(process.execPath, [script, out, String((last % 250) + 1)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let stdout = '';
    child.stdout.on('data', (text) => {
      stdout += text;
    });
    const closed = once(child, 'close');
    await once(child.stdout, 'data'); // the first set: before, it starts up
    await new Promise((resolve) => setTimeout(resolve, random() * 2 * aSaveMs));
    child.kill('SIGKILL');
    await closed;
    last = Number(stdout.trim().split('\n').at(-1));
    const now = await found(out);
    const next = (last % 250) + 1;
    expect({ kill, seed, found: [last, next, 'MISSING_SHARD'].includes(now) ? 'one of them' : now }).toEqual({
      kill,
      seed,
      found: 'one of them',
    });
    ++seen[now === last ? 'old' : now === next ? 'new' : 'refused'];
    if (now === next) last = next;
  }
  console.log(`after kills: ${JSON.stringify(seen)}, seed ${seed}`);
  // What all of them left goes with the next save.
  await saveSharded([{ name: 'a', shape: [1], data: new Uint8Array(1) }], out);
  expect(readdirSync(out)).toEqual(['model.safetensors']);
});

const GIB = Number(process.env.FST_RESHARD_GIB ?? 8); // on the disk are twice as many
const BOUND_MIB = 256;

test(`reshard of ${GIB} GiB takes at most ${BOUND_MIB} MiB of memory; its tensors are byte-equal`, async () => {
  const source = join(folder, 'source');
  const out = join(folder, 'out');
  const MIB = 2 ** 20;
  const some = randomBytes(16 * MIB);
  const bytesOf = (number: number): Uint8Array => {
    const bytes = Buffer.from(some);
    for (let at = 0; at < bytes.length; at += 4096) bytes.writeUInt32LE(at + number, at);
    return bytes;
  };
  const count = GIB * 64;
  async function* model(): AsyncGenerator<[string, { dtype: 'BF16'; shape: number[]; data: Uint8Array }]> {
    for (let i = 0; i < count; ++i) yield [`t${i}`, { dtype: 'BF16', shape: [8 * MIB], data: bytesOf(i) }];
  }
  await saveSharded(model(), source, { maxShardBytes: 700e6, fsync: false });
  const args = ['reshard', source, out, '--max-shard-bytes', '1GB', '--json'];
  const { code, stdout, stderr } = await runChild('long/save-sharded.child.cjs', args, { timeoutMs: 500_000 });
  expect([code, stderr]).toEqual([0, '']);
  const mib = Number(stdout.trim().split('\n').at(-1));
  console.log(`reshard of ${GIB} GiB: ${mib} MiB`);
  expect(mib).toBeLessThanOrEqual(BOUND_MIB);

  const open = await fastsafeOpen(out);
  expect(open.keys().length).toBe(count);
  for (let i = 0; i < count; ++i) {
    const tensor = await open.getTensor(`t${i}`);
    expect(Buffer.compare(await tensor.toHost(), bytesOf(i))).toBe(0);
    tensor.dispose();
  }
  await open.close();
});
