import { expectClean } from './support/child.js';

// Many loads at once on one signal: node warns of more than ten listeners.

test.each([
  ['gets', 'of one fastsafeOpen'],
  ['loaders', 'of a loader each'],
  ['copies', 'of one loader’s copies'],
  ['requests', 'requests of a copier of the user’s own'],
  ['aborted', 'all reject when it is aborted'],
  ['closed', 'all reject when the loader is closed'],
])('%s: %s', async (scenario) => {
  await expectClean('signals.child.cjs', [scenario]);
});
