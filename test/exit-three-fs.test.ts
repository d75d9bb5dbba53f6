import { emulators } from 'fastsafetensors-node/testing';
import { runChild } from './support/child.js';

// exit() destroys the tables of the 3FS client library while threads of a load call into it. The emulator of the
// library does as well, and aborts at the first call after that.

const SETTINGS = { LEFT: 0, LATENCY_MS: 1 }; // a load that is in progress leaves what it holds

describe.each(['cpu', 'cuda:0'])('3FS to %s', (device) => {
  const cuda = device === 'cpu' ? {} : emulators.cuda.env({ LEAKS: 'off' });
  const env = { ...emulators.hf3fs.env(SETTINGS), ...cuda, TEST_DEVICE: device };
  const end = (scenario: string, moment: number) =>
    runChild('exit.child.cjs', [scenario, '3fs', String(moment)], { env });

  test('process.exit() at any moment of a load ends with its code', async () => {
    for (const moment of [0, 3, 9, 14, 21, 27, 33, 36, 40]) {
      expect(await end('processExit', moment)).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
    }
  });

  test('an uncaught error at any moment of a load ends with code 1', async () => {
    for (const moment of [1, 8, 16, 25, 33, 39]) {
      const ended = await end('uncaught', moment);
      expect(ended).toMatchObject({ code: 1, signal: null });
      expect(ended.stderr).toContain('uncaught on purpose');
      expect(ended.stderr).not.toContain('emulator');
    }
  });
});
