import { runChild } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';

// A 3FS whose daemon has died says THREEFS_DISCONNECTED wherever a load first notices.

const test = testUnless(whyNoFuse());

test.each(['dead', 'auto-unmounted', 'dead behind a link'])(
  'every entry says so of a mount that is %s',
  async (how) => {
    const ended = await runChild('dead-mount.child.cjs', ['everyEntry', how], { shell: inPrivateMounts('128m') });
    expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
  },
);

test('what is missing on a mount that lives stays an IO_ERROR', async () => {
  const ended = await runChild('dead-mount.child.cjs', ['missing'], { shell: inPrivateMounts('128m') });
  expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
});
