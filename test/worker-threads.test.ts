import { expectClean, runChild } from './support/child.js';

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

test('the process ends in the middle of loads of workers with its code', async () => {
  // What is loaded goes with the process.
  const end = (ending: string, us: string) =>
    runChild('worker-threads.child.cjs', ['mainEnds', ending, us], { env: { FST_EMU_CUDA_LEAKS: 'off' } });
  for (const us of ['0', '3000', '15000']) {
    expect(await end('exit', us)).toEqual({ code: 7, signal: null, stdout: '', stderr: '' });
    const ended = await end('uncaught', us);
    expect(ended).toMatchObject({ code: 1, signal: null });
    expect(ended.stderr).toContain('uncaught on purpose');
  }
});
