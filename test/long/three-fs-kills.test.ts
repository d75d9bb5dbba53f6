import { runChild } from '../support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from '../support/private-mounts.js';

const test = testUnless(whyNoFuse());

test('processes that are killed at 200 random moments leave nothing, whatever their daemon does', async () => {
  const options = { shell: inPrivateMounts('256m'), timeoutMs: 590_000 };
  const ended = await runChild('three-fs-kills.child.cjs', ['moments', '200', String(Date.now() % 1_000_000)], options);
  console.log(ended.stdout);
  expect(ended).toMatchObject({ code: 0, signal: null, stderr: '' });
});
