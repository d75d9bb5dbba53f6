import { runChild } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';

// 3FS has no holes: a read that would end in one is short, also an ordinary one, and the kernel then takes the file for
// shorter than it is.

const test = testUnless(whyNoFuse());

test.each(['3fs', 'nogds'])('a hole on 3FS is a SHORT_READ that names the tensor, through %s', async (copier) => {
  const ended = await runChild('holes.child.cjs', ['inData', copier], { shell: inPrivateMounts('128m') });
  expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
});

test('a hole in the header is a SHORT_READ', async () => {
  const ended = await runChild('holes.child.cjs', ['inHeader'], { shell: inPrivateMounts('128m') });
  expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
});
