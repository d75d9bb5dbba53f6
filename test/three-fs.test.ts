import { spawn, spawnSync } from 'node:child_process';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { emulators } from 'fastsafetensors-node/testing';
import { runChild } from './support/child.js';

// 3FS over the emulator of its client library. The emulator ends a process that misuses it or leaves anything behind,
// which shows as a signal and on stderr.

type Settings = Readonly<Record<string, string | number>>;

const EVERYTHING: Settings = { SHUFFLE: 5, EAGAIN_EVERY: 3, EARLY: 2, LATENCY_MS: 1, BANDWIDTH: 2e9 };

function environment(device: string, settings: Settings): Record<string, string> {
  const cuda = device === 'cpu' ? {} : emulators.cuda.env();
  return { ...emulators.hf3fs.env(settings), ...cuda, TEST_DEVICE: device };
}

/** The script ends by itself, says `ok`, and nothing on stderr but that the process keeps the GPU's context. */
async function run(device: string, settings: Settings, args: readonly string[], shell = ''): Promise<void> {
  const options = { flags: ['--expose-gc'], env: environment(device, settings), shell };
  const { stderr, ...ended } = await runChild('three-fs.child.cjs', args, options);
  const said = stderr.replace(/^emulated CUDA: alive at exit: 1 retained contexts\n/, '');
  expect({ ...ended, stderr: said }).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
}

describe.each(['cpu', 'cuda:0'])('to %s', (device) => {
  test('every loader gives the bytes of the files with every injection on', async () => {
    await run(device, EVERYTHING, ['everyLoader']);
  });

  test('completions that come before submit_ios returns are taken', async () => {
    await run(device, { EARLY: 1 }, ['everyLoader']);
  });

  test('a ring that vanishes is made anew and what it had is read again', async () => {
    await run(device, { RING_LOST: 5, LATENCY_MS: 2 }, ['everyLoader']);
  });

  test.each<[string, Settings, string[]]>([
    ['a short read', { SHORT: 4 }, ['SHORT_READ', 'data.safetensors']],
    ['an I/O error', { EIO: 3 }, ['THREEFS_ERROR', 'EIO']],
    ['a call between servers that fails', { FAIL: 'io:3:-121' }, ['THREEFS_ERROR', 'EREMOTEIO']],
    ['a result above what was asked for', { FAIL: 'io:3:99999999' }, ['THREEFS_ERROR', 'says it read 99999999']],
    ['memory that may not be locked', { MEMLOCK: 65536 }, ['THREEFS_ERROR', 'locked memory']],
    ['a job that never completes', { STALL: 6 }, ['STALLED', 'stallTimeoutMs', '{"stallTimeoutMs":700}']],
    ['a daemon that dies', { DAEMON_DEAD: 6, LATENCY_MS: 5 }, ['THREEFS_DISCONNECTED', 'hf3fs_fuse']],
    // Before the first read, and again with it.
    ['a ring that cannot be made', { FAIL: 'iorcreate4:1:-12,iorcreate4:2:-12' }, ['THREEFS_ERROR', 'ring']],
  ])('%s is a typed error, and nothing is left', async (_, settings, args) => {
    await run(device, settings, ['fails', ...args]);
  });

  test('a file that changes between header and data is FILE_CHANGED', async () => {
    await run(device, {}, ['changes']);
  });

  test('a file beside one that is not on 3FS is reported, too', async () => {
    await run(device, {}, ['neighbours']);
  });

  test('files are read through the descriptors that their headers were read through', async () => {
    await run(device, { LATENCY_MS: 20, BANDWIDTH: 2e8 }, ['sameDescriptors']);
  });

  test('a hole is a SHORT_READ, and zeros through an ordinary file system', async () => {
    await run(device, {}, ['holes']);
  });

  test('ring and buffer are made while headers are read, and go with the loader', async () => {
    await run(device, {}, ['beginsEarly']);
  });

  test.each(['any', '3fs'])('the client library is loaded when a loader is made: %s', async (kind) => {
    await run(device, {}, ['loadsLibraryEarly', kind]);
  });

  test("the buffer's pages are allocated before the files are known, and given back where none are read", async () => {
    await run(device, {}, ['reservesEarly']);
  });

  test('a load that is given up leaves nothing', async () => {
    await run(device, { BANDWIDTH: 2e8, LATENCY_MS: 2 }, ['abandoned']);
  });

  test('a path elsewhere is NOT_3FS unless the ordinary reader is allowed', async () => {
    await run(device, {}, ['elsewhere']);
  });

  test.each(['naturally', 'exit'])(
    'the next loader has ring and buffer, in any thread; the process ends with them: %s',
    async (end) => {
      await run(device, {}, ['keepsForTheNext', end]);
    },
  );

  test("a reader of the caller's own needs no 3FS", async () => {
    await run(device, { FAIL: 'reg_fd:1:22' }, ['ownReader']);
  });
});

test("'auto' takes 3fs on its mount, nogds elsewhere", async () => {
  await run('cpu', {}, ['chosen']);
});

test('a thousand small files with few descriptors', async () => {
  await run('cpu', {}, ['manyFiles', '1000'], 'ulimit -n 96');
});

test('a process that is killed in the middle of a load leaves nothing in /dev/shm', async () => {
  const shared = (): string[] => readdirSync('/dev/shm').filter((name) => /^(hf3fs-iov-|sem\.hf3fs)/.test(name));
  const before = shared();
  const script = join(__dirname, 'three-fs.child.cjs');
  const env = { ...process.env, NODE_OPTIONS: '', ...environment('cpu', { STALL: 1 }) };
  const child = spawn(process.execPath, [script, 'killed'], { env, stdio: ['ignore', 'pipe', 'inherit'] });
  const folder = await new Promise<string>((resolve, reject) => {
    child.stdout.once('data', (text) => resolve(String(text).trim()));
    child.once('close', (code) => reject(new Error(`it ended with ${code}`)));
  });
  const ended = new Promise((resolve) => child.once('close', (_, signal) => resolve(signal)));
  child.kill('SIGKILL');
  expect(await ended).toBe('SIGKILL');
  expect(shared()).toEqual(before);
  rmSync(folder, { recursive: true });
});

/** A shell's preamble that gives the process a small /dev/shm of its own; '' without the right to mount: it says so. */
function withSmallShm(size: string): string {
  const small = `mount -t tmpfs -o size=${size} tmpfs /dev/shm`;
  const again = `exec unshare -m bash -c '${small} && exec "$@"' bash "$@"`;
  const inNamespace = `if [ -z "$SMALL" ]; then export SMALL=1; ${again}; fi`;
  if (spawnSync('unshare', ['-m', 'bash', '-c', small]).status === 0) return inNamespace;
  console.warn(`"${expect.getState().currentTestName}" is skipped: only root may mount a small /dev/shm`);
  return '';
}

test('a full /dev/shm is OUT_OF_HOST_MEMORY that names size, room and remedy', async () => {
  const shell = withSmallShm('4m');
  if (shell === '') return; // only root may mount; the C++ tests fill it without
  await run('cpu', {}, ['fails', 'OUT_OF_HOST_MEMORY', 'bufferSize'], shell);
});

test.each([
  ['64m', '0'],
  ['120m', '1'],
])('in a /dev/shm of %s, %s ring with its buffer is kept', async (size, kept) => {
  const shell = withSmallShm(size);
  if (shell === '') return;
  await run('cpu', {}, ['keepsRoom', kept], shell);
});

test('however many pages /dev/shm has left, nobody dies of it', async () => {
  const shell = withSmallShm('1m');
  if (shell === '') return;
  await run('cpu', {}, ['shmEdges'], shell);
});
