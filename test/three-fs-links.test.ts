import { runChild } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';

// Links that a load from 3FS loses while it reads, over a real FUSE mount: the kernel knows them for seconds more.

const test = testUnless(whyNoFuse());

async function run(scenario: string): Promise<void> {
  const ended = await runChild('three-fs-links.child.cjs', [scenario], { shell: inPrivateMounts('256m') });
  expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
}

test('links whose numbers are free count as gone', async () => {
  await run('lost');
});

test("links whose numbers are another user's now count as gone", async () => {
  await run('reused');
});
