import { expectClean, runChild } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoMounts } from './support/private-mounts.js';
import { seed } from './support/random-ends.js';

// Mapped files that other processes write to, and the ends of those that have them mapped.

const flags = ['--expose-gc'];

test.each([
  [['busy'], 'a busy event loop holds no writer up'],
  [['exits', 'exit'], 'process.exit() gives the leases back'],
  [['exits', 'kill'], 'SIGKILL does'],
  [['worker'], 'the end of a worker does'],
  [['spawned'], 'no child inherits them'],
])('%p: %s', async (args) => {
  await expectClean('mapped.child.cjs', args, { flags });
});

test('writers at 40 random moments change no tensor and end no process', async () => {
  const ended = await runChild('mapped.child.cjs', ['moments', '40', String(seed)], { flags });
  expect(ended).toEqual({ code: 0, signal: null, stdout: expect.stringMatching(/\nok\n$/), stderr: '' });
});

testUnless(whyNoMounts())('files of an overlay are copied', async () => {
  await expectClean('mapped.child.cjs', ['overlay'], { flags, shell: inPrivateMounts('64m') });
});
