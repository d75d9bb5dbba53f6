import { expectClean } from './support/child.js';

// SIGSTOP, a debugger or `docker pause` stop every thread at once: what of a load was in flight then is not stalled.

test.each([
  ['engine', [], 'reads that end after the process goes on'],
  ['copier', [], 'requests of a copier of the user’s own that end after the process goes on'],
  ['close', [], 'close() waits for them without a warning'],
  ['timeout', ['late'], 'timeoutMs counts the time in which the process was stopped'],
  ['timeout', ['late mock'], 'and so it does for a copier of the user’s own'],
])('stopped for longer than stallTimeoutMs, %s %s: %s', async (scenario, args) => {
  await expectClean('stopped-process.child.cjs', [scenario, ...args], { flags: ['--expose-gc'] });
});
