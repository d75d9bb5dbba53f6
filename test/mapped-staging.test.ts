import { ParallelLoader, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { emulators } from 'fastsafetensors-node/testing';
import { expectClean, runChild } from './support/child.js';
import { ownCopier } from './support/own-copier.js';
import { endAtRandom, seed } from './support/random-ends.js';
import { refused } from './support/refused.js';
import { testFolder } from './support/tensor-files.js';

// staging: 'mapped': GPUs copy from the page cache by themselves. test/native/pinned_span_test.cc has what of it only
// C++ can see.

const folder = testFolder(); // processes that end in the middle of loads leave their files there
const gpus = (options: Record<string, string | number> = {}): Record<string, string> =>
  emulators.cuda.env({ DEVICES: 2, DELAY_US: 50, JITTER_US: 200, LEAKS: 'abort-memory', ...options });
const clean = (args: readonly string[], env: Record<string, string> = gpus()) =>
  expectClean('mapped-staging.child.cjs', args, { env, flags: ['--expose-gc'] });

test('gives every byte by every loader, to one GPU and to several', () => clean(['everyByte']));

test.each([
  ['the GPU does not page-lock what is mapped read-only', 'READ_ONLY_HOST_REGISTER_SUPPORTED', { ATTRIBUTES: '113:0' }],
  ['the first pages are not locked', 'cuMemHostRegister failed', { FAIL: 'cuMemHostRegister_v2:1:1' }],
  ['some pages are not locked', 'cuMemHostRegister failed', { FAIL: 'cuMemHostRegister_v2:7:999' }],
  ['too little memory may be locked', 'OUT_OF_MEMORY', { PINNED: 600_000, DELAY_US: 5000 }],
])('where %s, it is read, and the notes say so', (_, reason, options) => clean(['fallsBack', reason], gpus(options)));

test.each([
  ['execute:5:700', 'CUDA_ERROR'],
  ['cuMemcpyHtoDAsync_v2:5:719', 'CUDA_ERROR'],
  ['cuEventSynchronize:3:999', 'CUDA_ERROR'],
  ['cuMemAlloc_v2:0:2', 'OUT_OF_DEVICE_MEMORY'],
])('%s ends the load, and leaves nothing', (failure, code) =>
  clean(['fails', code], gpus({ FAIL: failure, LEAKS: failure.startsWith('cuMemAlloc') ? 'abort-memory' : 'off' })),
);

test('what other copiers read, and what has no budget, is not mapped', () =>
  clean(['others'], { ...gpus(), ...emulators.cufile.env({ LEAKS: 'abort' }) }));

test.each([600_000, 3_000_000])('locked pages keep to a budget of %d bytes', (bytes) =>
  // The driver refuses more, which would be in the notes. Copies are late, so that a timer sees what they hold.
  clean(['budget', `${bytes}`], gpus({ PINNED: bytes, DELAY_US: 5000 })),
);

test('close() and aborts at any moment leave nothing', () => clean(['ends']));

test('a file that changes meanwhile gives its bytes or FILE_CHANGED', () =>
  clean(['changes'], gpus({ DELAY_US: 2000 })));

test('process.exit() at random moments of loads ends with its code', async () => {
  const env = {
    ...ownCopier('nogds', 'cuda:0', { midway: true }),
    TMPDIR: folder,
    KEEP_FOLDER: '1',
    TEST_STAGING: 'mapped',
  };
  const endAt = (...args: string[]) => runChild('exit.child.cjs', ['endAt', ...args], { env });
  expect({ seed, wrong: await endAtRandom('exit', 12, endAt) }).toEqual({ seed, wrong: [] });
}, 180_000);

test.each([
  [
    'host memory, which is the default, says what is there instead',
    {},
    /^staging: 'mapped'.*device is 'cpu'.*mmap: true/,
  ],
  ['reads past the page cache', { device: 'cuda:0', odirect: true }, /^staging: 'mapped'.*odirect: true/],
  ['files that leave the page cache', { device: 'cuda:0', dropCache: true }, /^staging: 'mapped'.*dropCache: true/],
] as const)('%s: INVALID_ARGUMENT', async (_, options, message) => {
  for (const make of [
    () => new SafeTensorsFileLoader({ staging: 'mapped', ...options }),
    () => new ParallelLoader({ files: 'x', staging: 'mapped', ...options }),
  ]) {
    const error = await refused(make);
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toMatch(message);
  }
});
