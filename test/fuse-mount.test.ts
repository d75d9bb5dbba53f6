import { runChild } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';

// A real FUSE mount as tests have it: what its daemon does with links, and a load over it.

const test = testUnless(whyNoFuse());

async function run(scenario: string): Promise<void> {
  const ended = await runChild('fuse-mount.child.cjs', [scenario], { shell: inPrivateMounts('128m') });
  expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
}

test('the daemon knows the links of each thread, and forgets them with its last look at their folder', async () => {
  await run('links');
});

test('the daemon refuses what 3FS refuses', async () => {
  await run('refusals');
});

test('a daemon that is stopped, killed or started again does as 3FS does', async () => {
  await run('lives');
});

test('a load over the mount gives the bytes and leaves nothing in the daemon', async () => {
  await run('load');
});

test('a load that is killed leaves nothing in the daemon', async () => {
  await run('killed');
});
