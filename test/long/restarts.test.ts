import { runChild } from '../support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from '../support/private-mounts.js';
import { seed } from '../support/random-ends.js';

const test = testUnless(whyNoFuse());

async function run(scenario: string, count: string, ...more: string[]): Promise<void> {
  const options = { shell: inPrivateMounts('256m'), timeoutMs: 590_000 };
  const ended = await runChild('restarts.child.cjs', [scenario, count, String(seed), ...more], options);
  console.log(`seed ${seed}: ${ended.stdout}`);
  expect(ended).toMatchObject({ code: 0, signal: null, stderr: '' });
}

test('50 deaths of a daemon leave no more than the first', async () => {
  await run('deaths', '50');
});

test.each(['cpu', 'cuda:0'])('60 restarts at random moments of loads onto %s', async (device) => {
  await run('backInAMoment', '60', device);
});
