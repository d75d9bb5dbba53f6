import { expectClean, runChild } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';
import { seed } from './support/random-ends.js';

// A 3FS daemon that is started again in the middle of loads: they go on, or say THREEFS_DISCONNECTED.

const test = testUnless(whyNoFuse());
const options = { shell: inPrivateMounts('256m') };

async function atRandom(scenario: string, count: string, ...more: string[]): Promise<void> {
  const ended = await runChild('restarts.child.cjs', [scenario, count, String(seed), ...more], options);
  expect({ seed, ...ended }).toMatchObject({ seed, code: 0, signal: null, stderr: '' });
}

const DEVICES = ['cpu', 'cuda:0'];

test.each(DEVICES)('a load onto %s goes on over a daemon that is there again at once', async (device) => {
  await expectClean('restarts.child.cjs', ['atOnce', device], options);
});

test.each(DEVICES)('killed at random moments of loads onto %s, a daemon is back within a second', async (device) => {
  await atRandom('backInAMoment', '4', device);
});

test.each(DEVICES)('loads onto %s end while the daemon is dead, and work when it is back', async (device) => {
  await expectClean('restarts.child.cjs', ['staysDead', device], options);
});

test('loaders are used over several daemons after each other', async () => {
  await expectClean('restarts.child.cjs', ['betweenLoads'], options);
});

test('a file that another one has replaced meanwhile is not taken for it', async () => {
  await expectClean('restarts.child.cjs', ['replaced'], options);
});

test.each(['stale', 'staleAtTheEnd'])(
  'a file that the daemon does not know any more is opened anew: %s',
  async (when) => {
    await expectClean('restarts.child.cjs', [when], options);
  },
);

test('a death leaves no descriptor, mapping or thread', async () => {
  await atRandom('deaths', '4');
});
