import { emulators } from 'fastsafetensors-node/testing';
import { runChild } from '../support/child.js';

// Two GPUs that are loaded at a time take as long as the slower one alone: the emulator models a copy engine of each.

const MOST = 1.05;
const CASES: [name: string, bytes: number, first: number, second: number, rates: string][] = [
  ['one copies half as fast', 4_000_000, 16, 16, '400000000;200000000'],
  ['one has more bytes', 4_000_000, 20, 12, '300000000;300000000'],
  ['both alike', 4_000_000, 16, 16, '300000000;300000000'],
  ['small tensors', 100_000, 640, 640, '300000000;300000000'],
];

test.each(CASES)(
  `%s: at most ${MOST} x the slower one alone`,
  async (_, bytes, first, second, rates) => {
    const { code, stdout, stderr } = await runChild(
      'long/devices.child.cjs',
      ['measure', `${bytes}`, `${first}`, `${second}`, '9'],
      {
        env: emulators.cuda.env({ DEVICES: 2, BANDWIDTHS: rates, DELAY_US: 0, LEAKS: 'abort-memory' }),
        flags: ['--expose-gc'],
        timeoutMs: 120_000,
      },
    );
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const figures = JSON.parse(stdout.split('\n')[0]!) as Record<string, { ratio: number }>;
    console.log(stdout);
    for (const { ratio } of Object.values(figures)) expect(ratio).toBeLessThanOrEqual(MOST);
  },
  130_000,
);
