import { expectClean } from './support/child.js';

// Loads end at every moment, in every way, without a crash, a hang or a leak.

test.each([
  ['close', 'close() at every moment ends a load with CLOSED and gives everything back'],
  ['closeTwice', 'close() several times at once is one close'],
  ['closeBeforeAnything', 'a loader that was never used can be closed'],
  ['abort', 'an abort at every moment rejects with its reason'],
  ['abortOneCopy', "an abort of one copy gives that copy's memory back and leaves the loader usable"],
  ['abortIsAtOnce', 'an abort does not wait for reads in flight'],
  ['timeout', 'timeoutMs does not wait for reads in flight'],
  ['leave', 'break, return() and an exception in the loop give back what was loaded ahead'],
  ['twoIterationsAtOnce', 'iterations of one loader at the same time each get everything'],
  ['closedBufferGivesAllBack', 'a closed buffer gives back tensors that were never asked for'],
])('%s: %s', async (scenario) => {
  await expectClean('ending.child.cjs', [scenario]);
});

test('keepTensors: tensors, typed arrays and clones stay valid after everything was closed', async () => {
  await expectClean('ending.child.cjs', ['keepTensors'], { flags: ['--expose-gc'] });
});
