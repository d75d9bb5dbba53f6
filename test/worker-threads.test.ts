import { expectClean } from './support/child.js';

// Loads in worker threads, which may end at any moment.

test.each([
  ['severalAtOnce', 'several workers and the main thread load at once; what workers left open is given back'],
  ['terminated', 'a worker is terminated in the middle of loads'],
  ['clonesTerminated', 'a worker is terminated while copies of tensors are being made'],
  ['exitsInTheMiddle', 'a worker exits or throws in the middle of a load'],
  ['stalled', 'a worker is terminated while a read never comes back'],
])('%s: %s', async (scenario) => {
  // A read that never comes back keeps its memory to the end: the emulated GPU need not report that.
  const env: Record<string, string> = scenario === 'stalled' ? { FST_EMU_CUDA_LEAKS: 'off' } : {};
  await expectClean('worker-threads.child.cjs', [scenario], { flags: ['--expose-gc'], env });
});
