import { expectClean } from './support/child.js';

// An async function may be given where a callback is asked for: what its promise rejects with is as what it throws, and
// never ends the process.

test.each([
  ['rejects', 'an onProgress that rejects ends the load with that, at any event, once or at all of them'],
  ['late', 'one that rejects when the load has ended is a warning'],
  ['logger', 'a logger that rejects breaks nothing'],
])('%s: %s', async (scenario) => {
  await expectClean('callback-promises.child.cjs', [scenario]);
});
