import { expectClean, runChild } from './child.js';
import { OWN_COPIERS, ownCopier } from './own-copier.js';

/** Whose reads take long enough to be ended in the middle. */
export const SLOW = OWN_COPIERS.filter(([copier]) => copier !== 'nogds');

/**
 * Lives and ends of loads by copiers that call into other libraries: what ending.test.ts, signals.test.ts and
 * worker-threads.test.ts hold of fake ones. The emulators abort when they are misused or anything is left at the end.
 */
export function testCopierEndings(copiers: readonly (readonly [copier: string, device: string])[]): void {
  describe.each(copiers)('%s to %s', (copier, device) => {
    const clean = (script: string, scenario: string, settings: Parameters<typeof ownCopier>[2] = {}) =>
      expectClean(script, [scenario], { env: ownCopier(copier, device, settings), flags: ['--expose-gc'] });

    test.each([
      ['close', 'close() at every moment ends a load with CLOSED and gives everything back'],
      ['closeTwice', 'close() several times at once is one close'],
      ['abort', 'an abort at every moment rejects with its reason'],
      ['abortOneCopy', "an abort of one copy gives that copy's memory back and leaves the loader usable"],
      ['leave', 'break, return() and an exception in the loop give back what was loaded ahead'],
      ['twoIterationsAtOnce', 'iterations of one loader at the same time each get everything'],
      ['closedBufferGivesAllBack', 'a closed buffer gives back tensors that were never asked for'],
      ['keepTensors', 'tensors, typed arrays and clones stay valid after everything was closed'],
    ])('%s: %s', (scenario) => clean('ending.child.cjs', scenario));

    test.each([
      ['abortIsAtOnce', 'an abort does not wait for reads in flight'],
      ['timeout', 'timeoutMs does not wait for reads in flight'],
    ])('%s: %s', (scenario) => clean('ending.child.cjs', scenario, { readMs: 800 }));

    describe('many loads on one signal', () => {
      test.each([
        ['gets', 'of one fastsafeOpen'],
        ['loaders', 'of a loader each'],
        ['copies', 'of one loader’s copies'],
      ])('%s: %s', (scenario) => clean('signals.child.cjs', scenario));

      test.each([
        ['aborted', 'all reject when it is aborted'],
        ['closed', 'all reject when the loader is closed'],
      ])('%s: %s', (scenario) => clean('signals.child.cjs', scenario, { readMs: 300 }));
    });

    describe('worker threads', () => {
      test.each([
        ['severalAtOnce', 'several workers and the main thread load at once; what workers left open is given back'],
        ['terminated', 'a worker is terminated in the middle of loads'],
        ['exitsInTheMiddle', 'a worker exits or throws in the middle of a load'],
      ])('%s: %s', (scenario) => clean('worker-threads.child.cjs', scenario));

      test('the process ends in the middle of their loads with its code', async () => {
        const env = ownCopier(copier, device, { midway: true });
        const end = (ending: string, us: string) =>
          runChild('worker-threads.child.cjs', ['mainEnds', ending, us], { env });
        for (const us of ['0', '2000', '9000']) {
          expect(await end('exit', us)).toEqual({ code: 7, signal: null, stdout: '', stderr: '' });
          const ended = await end('uncaught', us);
          expect(ended).toMatchObject({ code: 1, signal: null });
          expect(ended.stderr).toContain('uncaught on purpose');
          expect(ended.stderr).not.toMatch(/emula/i);
        }
      });
    });
  });

  test.each(['cpu', 'cuda:0'])('a worker is terminated while a read of 3FS to %s never comes back', async (device) => {
    const env = { ...ownCopier('3fs', device, { midway: true }), FST_EMU_HF3FS_STALL: '2' };
    await expectClean('worker-threads.child.cjs', ['stalled'], { env, flags: ['--expose-gc'] });
  });
}
