import { runChild } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';

// Processes that are killed while they load from 3FS, over a real FUSE mount: what they leave in /dev/shm the next
// loader removes, what they leave in the daemon goes when that notices.

const test = testUnless(whyNoFuse());

async function run(...args: string[]): Promise<void> {
  const ended = await runChild('three-fs-kills.child.cjs', args, { shell: inPrivateMounts('256m') });
  expect(ended).toEqual({ code: 0, signal: null, stdout: expect.stringMatching(/(^|\n)ok\n$/), stderr: '' });
}

test.each([
  ['buffer', '1'],
  ['ring', '2'],
])('the next loader removes the %s of one that died while the daemon was taking it', async (_, link) => {
  await run('whileLinked', link);
});

test('processes that are killed at random moments leave nothing, whatever their daemon does', async () => {
  await run('moments', '12', String(Date.now() % 1_000_000));
});
