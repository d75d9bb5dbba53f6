import { emulators } from 'fastsafetensors-node/testing';
import { runChild } from '../support/child.js';

// A budget costs a consumer that disposes little time, and the driver itself never has more than that: it refuses what
// is above its memory, and says so on stderr.

const BUDGET = 150_000_000;
/** What the emulator says of every process that has used it; else stderr has a line for each call that it refused. */
const AT_EXIT = 'emulated CUDA: alive at exit: 1 retained contexts\n';

test('10 shards of 100 MB within 150 MB of device memory take at most 1.15 x the time without a limit', async () => {
  const { code, stdout, stderr } = await runChild('long/budget.child.cjs', [String(BUDGET), '5'], {
    env: emulators.cuda.env({ MEMORY: 4e9, BANDWIDTH: 2e9, VERBOSE: 1 }),
    timeoutMs: 240_000,
  });
  expect({ code, stderr }).toEqual({ code: 0, stderr: AT_EXIT });
  const { limited, free } = JSON.parse(stdout);
  expect(limited).toBeLessThanOrEqual(1.15 * free);
}, 250_000);

test('a GPU with no more memory than the budget refuses nothing', async () => {
  const { code, stderr } = await runChild('long/budget.child.cjs', [String(BUDGET), '1', 'limited'], {
    env: emulators.cuda.env({ MEMORY: BUDGET, VERBOSE: 1 }),
    timeoutMs: 120_000,
  });
  expect({ code, stderr }).toEqual({ code: 0, stderr: AT_EXIT });
}, 130_000);
