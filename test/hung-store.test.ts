import { expectClean } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';

// A store that hangs (a daemon that was stopped): limits hold in each phase of a load, and what the kernel still holds
// keeps no process alive once close() has resolved.

test.each([
  ['read', 'a process ends by itself after STALLED and close(), though the read never comes back'],
  ['worker', 'so does a worker'],
])('%s: %s', async (scenario) => {
  await expectClean('hung-store.child.cjs', [scenario], { timeoutMs: 20_000 });
});

const testFuse = testUnless(whyNoFuse());
const shell = inPrivateMounts('128m');

testFuse.each([
  ['a file', 'STALLED'],
  ['a file', 'TIMEOUT'],
  ['a folder', 'STALLED'],
  ['a folder', 'TIMEOUT'],
  ['an index', 'STALLED'],
])('before the headers of %s are read, every entry is %s, others load, the process ends', async (place, limit) => {
  await expectClean('hung-store.child.cjs', ['headersOf', place, limit], { shell, timeoutMs: 30_000 });
});

testFuse.each([
  ['auto', 'STALLED'],
  ['3fs', 'STALLED'],
  ['3fs', 'TIMEOUT'],
  ['nogds', 'STALLED'],
  ['own', 'STALLED'],
])('between headers and data of %s it is %s', async (copier, limit) => {
  await expectClean('hung-store.child.cjs', ['dataAfterHeadersOf', copier, limit], { shell, timeoutMs: 30_000 });
});

testFuse('createSession can be aborted, and the process ends', async () => {
  await expectClean('hung-store.child.cjs', ['sessionOf'], { shell, timeoutMs: 30_000 });
});

testFuse('a worker that looks at a file can be terminated, and ends by itself after STALLED', async () => {
  await expectClean('hung-store.child.cjs', ['workersOf'], { shell, timeoutMs: 30_000 });
});

testFuse('what a load in its headers still opens when the daemon goes on is closed', async () => {
  await expectClean('hung-store.child.cjs', ['late'], { shell, timeoutMs: 30_000 });
});

testFuse.each(['nogds', '3fs'])(
  'reads of %s from a daemon that was stopped do not keep the event loop',
  async (copier) => {
    await expectClean('hung-store.child.cjs', ['dataOf', copier], { shell, timeoutMs: 30_000 });
  },
);

testFuse.each([
  ['closed', 'when they are to be closed'],
  ['coming', 'while their pages are brought in'],
])('%s: mapped files whose store hangs %s hold up no others', async (when) => {
  await expectClean('hung-store.child.cjs', ['mappedOf', when], { shell, timeoutMs: 30_000 });
});

test.each(['STALLED', 'TIMEOUT'])('an I/O thread that hangs in a call leaves %s to the event loop', async (code) => {
  await expectClean('hung-store.child.cjs', ['thread', code], { timeoutMs: 20_000 });
});
