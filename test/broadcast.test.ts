import { emulators } from '../src/testing/index.js';
import { expectClean, runChild } from './support/child.js';

// Ranks that read what all have whole together, over the emulated NCCL on emulated GPUs.

const env = (settings: Parameters<typeof emulators.nccl.env>[0] = {}): Record<string, string> => ({
  ...emulators.cuda.env({ DEVICES: 4, LEAKS: 'abort-memory' }),
  ...emulators.nccl.env(settings),
});

const NO_MEMORY = ['OUT_OF_DEVICE_MEMORY', 'OUT_OF_DEVICE_MEMORY'];

test('four processes: every tensor bit for bit, and the model is read once', () =>
  expectClean('broadcast.child.cjs', ['processes'], { env: env() }));

test('a rank is killed in the middle: the others end with STALLED and hold nothing', () =>
  expectClean('broadcast.child.cjs', ['killed'], { env: env() }));

test('ranks with different ids end with STALLED; an end that has failed, or is closed, stays so', () =>
  expectClean('broadcast.child.cjs', ['otherIds'], { env: env() }));

test('what not all ranks want whole, each reads by itself', () =>
  expectClean('broadcast.child.cjs', ['differing'], { env: env() }));

test('calls follow each other, of several loaders as well; other calls are a rank of its own', () =>
  expectClean('broadcast.child.cjs', ['calls'], { env: env() }));

test('a rank that cannot read its share tells the others', () =>
  expectClean('broadcast.child.cjs', ['unreadable'], { env: env() }));

test('ranks that list the files in another order have the same tensors', () =>
  expectClean('broadcast.child.cjs', ['orders'], { env: env() }));

test('tensors of a blob, which its name verifies, are read and broadcast whole', () =>
  expectClean('broadcast.child.cjs', ['blobs'], { env: env() }));

test('a rank without memory for what it gets tells the others', () =>
  expectClean('broadcast.child.cjs', ['memory', '1900000', 'IO_ERROR', 'IO_ERROR', ...NO_MEMORY], { env: env() }));

test('a rank that fails where the others cannot be told calls them no more, and they are told by the time', () =>
  expectClean('broadcast.child.cjs', ['memory', '40', 'STALLED', 'STALLED', 'OUT_OF_DEVICE_MEMORY', 'CLOSED'], {
    env: env(),
  }));

test.each(['before', 'while it waits for its turn'])(
  'a call aborted %s leaves the order of calls as it is',
  async (when) => expectClean('broadcast.child.cjs', ['turns', when], { env: env() }),
);

test('a stallTimeoutMs of Infinity is none, and half a millisecond is one', () =>
  expectClean('broadcast.child.cjs', ['limits'], { env: env() }));

test('thousands of tensors', () => expectClean('broadcast.child.cjs', ['many'], { env: env() }));

test('an id may be any view of its bytes', () => expectClean('broadcast.child.cjs', ['views'], { env: env() }));

test.each(['break', 'abort', 'close'])('a consumer that ends early (%s) takes no other rank along', (how) =>
  expectClean('broadcast.child.cjs', ['ending', how], { env: env() }),
);

test.each([
  ['ncclCommInitRankConfig', 'ncclCommInitRankConfig:1:2'],
  ['ncclCommInitRankConfig', 'ncclCommGetAsyncError:1:3'],
  ['nccl', 'ncclCommGetAsyncError:60:5'],
  ['ncclGroupStart', 'ncclGroupStart:6:3'],
  ['ncclBroadcast', 'ncclBroadcast:20:3'],
  ['ncclGroupEnd', 'ncclGroupEnd:4:2'],
  ['nccl', 'execute:1:1'],
  ['nccl', 'execute:30:6'],
])('%s fails (%s): a typed error on that rank, the others do not hang', (call, failure) =>
  expectClean('broadcast.child.cjs', ['injected', call], { env: env({ FAIL: failure }) }),
);

test.each(['ncclCommFinalize:1:2', 'ncclCommDestroy:1:2', 'ncclCommDestroy:0:2'])(
  '%s fails: nothing is lost',
  (failure) => expectClean('broadcast.child.cjs', ['calls'], { env: env({ FAIL: failure }), timeoutMs: 50_000 }),
);

test('without NCCL an error says what to install', () =>
  expectClean('broadcast.child.cjs', ['missing'], {
    env: { ...env(), FASTSAFETENSORS_NCCL_LIB: '/no/such/libnccl.so.2' },
  }));

test.each([
  [2708, '2\\.7\\.8'],
  [21304, '2\\.13\\.4'],
  [30000, '3\\.0\\.0'],
])('version %d is refused', (version, text) =>
  expectClean('broadcast.child.cjs', ['oldLibrary', text], { env: env({ VERSION: version }) }),
);

test('options that do not go with broadcasts are refused', () =>
  expectClean('broadcast.child.cjs', ['options'], { env: env() }));

test.each([0, 20, 60, 130, 300, 600, 900])('the process exits after %d ms while ranks broadcast', async (ms) => {
  const { code, signal, stderr } = await runChild('broadcast.child.cjs', ['exits', String(ms)], {
    env: { ...env({ BANDWIDTH: 2_000_000 }), FST_EMU_CUDA_LEAKS: 'off' },
  });
  expect({ code, signal, stderr }).toEqual({ code: 7, signal: null, stderr: '' });
});
