import { emulators } from 'fastsafetensors-node/testing';
import { runChild } from './support/child.js';
import { inPrivateMounts, testUnless, whyNoFuse } from './support/private-mounts.js';

// What '3fs' keeps between loaders, over a real FUSE mount whose daemon does what it likes meanwhile.

const test = testUnless(whyNoFuse());

async function run(scenario: string): Promise<void> {
  const env = { ...emulators.hf3fs.env(), HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: '' };
  const ended = await runChild('three-fs-idle.child.cjs', [scenario], { shell: inPrivateMounts('256m'), env });
  expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
}

test('the daemon has the same links and memory for each loader, and none once they are given back', async () => {
  await run('kept');
});

test('a read-only daemon has two links however many loaders there are; the log has one line', async () => {
  await run('readOnly');
});

test('a daemon that was restarted serves the next loader', async () => {
  await run('restarted');
});

test('a daemon that died meanwhile holds up nothing', async () => {
  await run('dead');
});

test('a daemon that was stopped holds up neither close() nor the exit', async () => {
  await run('stopped');
});
