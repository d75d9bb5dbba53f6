import { expectClean, runChild } from './support/child.js';
import { OWN_COPIERS, ownCopier } from './support/own-copier.js';
import { endAtRandom, seed } from './support/random-ends.js';
import { testFolder } from './support/tensor-files.js';

// exit() destroys what CUDA, cuFile and the 3FS client keep, while threads of a load call into them. The emulators of
// these libraries do as they do, and abort when they are called meanwhile. exit.test.ts has the ends of other loads.

const folder = testFolder(); // processes that end in the middle of loads leave their files there

describe.each(OWN_COPIERS)('%s to %s', (copier, device) => {
  const env = { ...ownCopier(copier, device, { midway: true }), TMPDIR: folder, KEEP_FOLDER: '1' };
  const run = (...args: string[]) => runChild('exit.child.cjs', args, { env });
  const clean = (...args: string[]) => expectClean('exit.child.cjs', args, { env });
  const endAt = (...args: string[]) => run('endAt', ...args);
  const end = (code: number, stdout = 'ok\n') => ({ code, signal: null, stdout, stderr: '' });

  test('process.exit() at random moments of loads ends with its code', async () => {
    expect({ seed, wrong: await endAtRandom('exit', 5, endAt) }).toEqual({ seed, wrong: [] });
  }, 180_000);

  test('an uncaught error at random moments of loads ends with code 1', async () => {
    expect({ seed, wrong: await endAtRandom('uncaught', 5, endAt) }).toEqual({ seed, wrong: [] });
  }, 180_000);

  test('a rejection that nobody handles ends with code 1', async () => {
    const { stderr, ...ended } = await run('rejected', 'own', '33');
    expect(ended).toEqual({ code: 1, signal: null, stdout: '' });
    expect(stderr).toContain('rejected on purpose');
    expect(stderr).not.toMatch(/emula/i);
  });

  test('--abort-on-uncaught-exception ends as without a load', async () => {
    const abort = (how: string) =>
      runChild('exit.child.cjs', ['uncaught', how, '33'], {
        env,
        flags: ['--abort-on-uncaught-exception'],
        shell: 'ulimit -c 0',
      });
    const [loading, idle] = [await abort('own'), await abort('nothing')];
    expect(loading).toMatchObject({ code: idle.code, signal: idle.signal });
    expect(idle.signal).not.toBeNull();
    expect(loading.stderr).toContain('uncaught on purpose');
    expect(loading.stderr).not.toMatch(/emula/i);
  });

  test('a process ends by itself with everything open', () => clean('naturalEnd', 'own'));
  test('loads that nobody awaits do not keep a process alive for ever', () => clean('abandoned', 'own'));
  test('a load that is awaited keeps the process alive', () => clean('awaited', 'own'));

  test("a load may begin in 'beforeExit', and end there", async () => {
    expect(await run('beforeExit', 'own', 'ends')).toEqual(end(0, 'ok\n60\n'));
    expect(await run('beforeExit', 'own', 'exits')).toEqual(end(7));
  });

  describe.each(['SIGTERM', 'SIGINT'])('%s at any moment', (name) => {
    const MOMENTS = ['0', '15000'];
    test('is handled by close()', async () => {
      for (const us of MOMENTS) expect(await run('signal', name, 'own', 'closes', us)).toEqual(end(0));
    });
    test('is handled by process.exit()', async () => {
      for (const us of MOMENTS) expect(await run('signal', name, 'own', 'exits', us)).toEqual(end(7));
    });
    test('ends a process that does not handle it', async () => {
      for (const us of MOMENTS) {
        const ended = await run('signal', name, 'own', 'nothing', us);
        expect(ended).toEqual({ code: null, signal: name, stdout: '', stderr: '' });
      }
    });
  });
});
