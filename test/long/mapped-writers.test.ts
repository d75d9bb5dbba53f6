import { readFileSync, writeFileSync } from 'node:fs';
import { expectClean, runChild } from '../support/child.js';
import { seed } from '../support/random-ends.js';

const flags = ['--expose-gc'];

test('writers at 1,000 random moments change no tensor and end no process', async () => {
  const ended = await runChild('mapped.child.cjs', ['moments', '1000', String(seed)], { flags, timeoutMs: 590_000 });
  console.log(ended.stdout);
  expect(ended).toMatchObject({ code: 0, signal: null, stderr: '' });
});

const LEASE_BREAK_TIME = '/proc/sys/fs/lease-break-time';

test('a process that is stopped for longer than writers wait goes on, and warns', async () => {
  const before = readFileSync(LEASE_BREAK_TIME, 'utf8');
  try {
    writeFileSync(LEASE_BREAK_TIME, '2');
  } catch (error) {
    console.log(`skipped: ${LEASE_BREAK_TIME} may not be set here (${(error as Error).message})`);
    return;
  }
  try {
    await expectClean('mapped.child.cjs', ['stopped', '2'], { flags });
  } finally {
    writeFileSync(LEASE_BREAK_TIME, before);
  }
});
