import { expectClean, runChild } from './support/child.js';
import { env } from './support/emulated-ranks.js';

// Ranks that read together, over the emulated NCCL on emulated GPUs, where one fails, ends or is killed, or the library
// fails.

const NO_MEMORY = ['OUT_OF_DEVICE_MEMORY', 'OUT_OF_DEVICE_MEMORY'];

test('a rank is killed in the middle: the others end with STALLED and hold nothing', () =>
  expectClean('broadcast-failures.child.cjs', ['killed'], { env: env() }));

test('ranks with different ids end with STALLED; an end that has failed, or is closed, stays so', () =>
  expectClean('broadcast-failures.child.cjs', ['otherIds'], { env: env() }));

test('a rank that cannot read its share tells the others', () =>
  expectClean('broadcast-failures.child.cjs', ['unreadable'], { env: env() }));

test('a rank without memory for what it gets tells the others', () =>
  expectClean('broadcast-failures.child.cjs', ['memory', '1900000', 'IO_ERROR', 'IO_ERROR', ...NO_MEMORY], {
    env: env(),
  }));

test('a rank that fails where the others cannot be told calls them no more, and they are told by the time', () =>
  expectClean(
    'broadcast-failures.child.cjs',
    ['memory', '40', 'STALLED', 'STALLED', 'OUT_OF_DEVICE_MEMORY', 'CLOSED'],
    { env: env() },
  ));

test.each(['break', 'abort', 'close'])('a consumer that ends early (%s) takes no other rank along', (how) =>
  expectClean('broadcast-failures.child.cjs', ['ending', how], { env: env() }),
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
  expectClean('broadcast-failures.child.cjs', ['injected', call], { env: env({ FAIL: failure }) }),
);

test.each(['ncclCommFinalize:1:2', 'ncclCommDestroy:1:2', 'ncclCommDestroy:0:2'])(
  '%s fails: nothing is lost',
  (failure) => expectClean('broadcast.child.cjs', ['calls'], { env: env({ FAIL: failure }), timeoutMs: 50_000 }),
);

test('without NCCL an error says what to install', () =>
  expectClean('broadcast-failures.child.cjs', ['missing'], {
    env: { ...env(), FASTSAFETENSORS_NCCL_LIB: '/no/such/libnccl.so.2' },
  }));

test.each([
  [2708, '2\\.7\\.8'],
  [21304, '2\\.13\\.4'],
  [30000, '3\\.0\\.0'],
])('version %d is refused', (version, text) =>
  expectClean('broadcast-failures.child.cjs', ['oldLibrary', text], { env: env({ VERSION: version }) }),
);

test.each([0, 20, 60, 130, 300, 600, 900])('the process exits after %d ms while ranks broadcast', async (ms) => {
  const { code, signal, stderr } = await runChild('broadcast-failures.child.cjs', ['exits', String(ms)], {
    env: { ...env({ BANDWIDTH: 30_000_000 }), FST_EMU_CUDA_LEAKS: 'off' },
  });
  expect({ code, signal, stderr }).toEqual({ code: 7, signal: null, stderr: '' });
});
