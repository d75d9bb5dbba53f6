import { expectClean, runChild } from './support/child.js';

/** What a load holds at such an end goes with the process: the emulated GPU has nothing to report. */
const LEAVES = { env: { FST_EMU_CUDA_LEAKS: 'off' } };

// A process may end at any moment of a load.

const HOW = ['direct', 'device', 'threads', 'mock', 'hanging'];
const ALL = HOW.flatMap((how) => [0, 5, 13, 32, 40].map((n) => [how, String(n)] as const));

test.each(HOW)('process.exit() with loads in flight, %s', async (how) => {
  for (const [, n] of ALL.filter(([other]) => other === how))
    await expectClean('exit.child.cjs', ['processExit', how, n], LEAVES);
});

test.each(HOW)(
  'an uncaught exception or rejection with loads in flight ends the process with code 1, %s',
  async (how) => {
    for (const [scenario, text] of [
      ['uncaught', 'uncaught on purpose'],
      ['rejected', 'rejected on purpose'],
    ] as const) {
      const ended = await runChild('exit.child.cjs', [scenario, how, '33'], LEAVES);
      expect(ended).toMatchObject({ code: 1, signal: null });
      expect(ended.stderr).toContain(text);
    }
  },
);

test.each(['direct', 'threads', 'mock'])('a process ends by itself with everything open, %s', async (how) => {
  await expectClean('exit.child.cjs', ['naturalEnd', how], LEAVES);
});

test.each(HOW)('loads that nobody awaits do not keep a process alive for ever, %s', async (how) => {
  await expectClean('exit.child.cjs', ['abandoned', how], LEAVES);
});

test.each(['direct', 'device', 'threads', 'mock'])(
  'a load that is awaited keeps the process alive, %s',
  async (how) => {
    await expectClean('exit.child.cjs', ['awaited', how], LEAVES);
  },
);
