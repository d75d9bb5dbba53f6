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
    const each = (script: string, scenarios: [scenario: string, says: string][], readMs?: number) => {
      const how = { env: ownCopier(copier, device, { readMs }), flags: ['--expose-gc'] };
      test.each(scenarios)('%s: %s', (scenario) => expectClean(script, [scenario], how));
    };

    each('ending.child.cjs', [
      ['close', 'close() at every moment ends a load with CLOSED and gives everything back'],
      ['closeTwice', 'close() several times at once is one close'],
      ['abort', 'an abort at every moment rejects with its reason'],
      ['abortOneCopy', "an abort of one copy gives that copy's memory back and leaves the loader usable"],
      ['leave', 'break, return() and an exception in the loop give back what was loaded ahead'],
      ['twoIterationsAtOnce', 'iterations of one loader at the same time each get everything'],
      ['closedBufferGivesAllBack', 'a closed buffer gives back tensors that were never asked for'],
      ['keepTensors', 'tensors, typed arrays and clones stay valid after everything was closed'],
    ]);

    each(
      'ending.child.cjs',
      [
        ['abortIsAtOnce', 'an abort does not wait for reads in flight'],
        ['timeout', 'timeoutMs does not wait for reads in flight'],
      ],
      800,
    );

    describe('many loads on one signal', () => {
      each('signals.child.cjs', [
        ['gets', 'of one fastsafeOpen'],
        ['loaders', 'of a loader each'],
        ['copies', 'of one loader’s copies'],
      ]);

      each(
        'signals.child.cjs',
        [
          ['aborted', 'all reject when it is aborted'],
          ['closed', 'all reject when the loader is closed'],
        ],
        300,
      );
    });

    describe('worker threads', () => {
      each('worker-threads.child.cjs', [
        ['severalAtOnce', 'several workers and the main thread load at once; what workers left open is given back'],
        ['terminated', 'a worker is terminated in the middle of loads'],
        ['exitsInTheMiddle', 'a worker exits or throws in the middle of a load'],
      ]);

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
