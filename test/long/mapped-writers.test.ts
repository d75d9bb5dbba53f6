import { readFileSync, writeFileSync } from 'node:fs';
import { expectClean, runChild } from '../support/child.js';
import { seed } from '../support/random-ends.js';

const flags = ['--expose-gc'];

test('writers at 1,000 random moments change no tensor and end no process', async () => {
  const ended = await runChild('mapped.child.cjs', ['moments', '1000', String(seed)], { flags, timeoutMs: 590_000 });
  console.log(ended.stdout);
  expect(ended).toMatchObject({ code: 0, signal: null, stderr: '' });
});

test('four processes over one mapped model of 2 GiB take its memory once', async () => {
  const ended = await runChild('mapped.child.cjs', ['shared', '4', '2048'], { flags, timeoutMs: 300_000 });
  console.log(ended.stdout);
  expect(ended).toMatchObject({ code: 0, signal: null, stderr: '' });
});

test('64 writers at once of 2 GiB are served by less than 2 s of processors a GB', async () => {
  const ended = await runChild('mapped.child.cjs', ['manyWriters', '64', '32'], { flags, timeoutMs: 300_000 });
  console.log(ended.stdout);
  expect(ended).toMatchObject({ code: 0, signal: null, stderr: '' });
});

const LEASE_BREAK_TIME = '/proc/sys/fs/lease-break-time';

test.each([
  ['stopped', 'goes on, and warns'],
  ['stoppedLoading', 'amid a load is told FILE_CHANGED'],
])('%s: a process that is stopped for longer than writers wait %s', async (scenario) => {
  const before = readFileSync(LEASE_BREAK_TIME, 'utf8');
  try {
    writeFileSync(LEASE_BREAK_TIME, '2');
  } catch (error) {
    console.log(`skipped: ${LEASE_BREAK_TIME} may not be set here (${(error as Error).message})`);
    return;
  }
  try {
    await expectClean('mapped.child.cjs', [scenario, '2'], { flags });
  } finally {
    writeFileSync(LEASE_BREAK_TIME, before);
  }
});
