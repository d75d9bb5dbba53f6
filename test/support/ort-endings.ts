import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expectClean, runChild } from './child.js';
import { writeOrtModels } from './ort-models.js';

/**
 * Processes and workers end at any moment of ONNX Runtime's work, without a crash, a hang or a word on stderr: at
 * `every` moment that is tried, or at the last one of each kind of work.
 */
export function testEndings(every: boolean): void {
  let folder: string;
  let models: string;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'ort-ending-'));
    models = JSON.stringify(await writeOrtModels(folder));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const gc = { flags: ['--expose-gc'] };
  const clean = (scenario: string, ...args: (string | number)[]) =>
    expectClean('adapters/ort-ending.child.cjs', [scenario, models, ...args.map(String)], gc);

  /** Above 29: milliseconds. While a session is made of these, constants are folded for seconds. */
  const MOMENTS = [
    ['open sessions', 'idle', [0, 33]],
    ['runs', 'running', [0, 20, 33, 60]],
    ['a run that cannot be told to end', 'stubborn', [33]],
    ['sessions being made', 'creating', [0, 33, 80, 200]],
    ['sessions being made of bytes', 'creatingFromBytes', [33, 80, 200]],
    ['sessions being released', 'releasing', [0, 20, 33]],
  ] as const;
  const EVERYTHING = MOMENTS.map(([what, how, moments]) => [what, how, every ? moments : moments.slice(-1)] as const);

  describe('process.exit() with', () => {
    test.each(EVERYTHING)('%s', async (_, how, moments) => {
      for (const moment of moments) await clean('processExit', how, moment);
    });

    test.each(['running', 'stubborn', 'creating'])('work in progress keeps its code, %s', async (how) => {
      expect(await runChild('adapters/ort-ending.child.cjs', ['exitCode', models, how])).toEqual({
        code: 7,
        signal: null,
        stdout: '',
        stderr: '',
      });
    });
  });

  test.each(['idle', 'running', 'stubborn', 'creating'])('an uncaught exception ends with code 1, %s', async (how) => {
    const ended = await runChild('adapters/ort-ending.child.cjs', ['uncaught', models, how]);
    expect(ended).toMatchObject({ code: 1, signal: null });
    expect(ended.stderr).toMatch(/uncaught on purpose[\s\S]*Node\.js v[\d.]+\n$/);
  });

  test.each(['idle', 'running', 'stubborn', 'creating', 'releasing'])(
    'a process ends by itself when nobody awaits or releases anything, %s',
    async (how) => {
      await clean('naturalEnd', how);
    },
  );

  test('a process that only waits for sessions goes on until it has them', () => clean('goesOn'));

  describe('a worker', () => {
    test.each(EVERYTHING)('is terminated with %s; the main thread goes on', async (_, how, moments) => {
      for (const moment of moments) await clean('worker', how, 'terminate', moment);
    });

    test.each(EVERYTHING)('exits with %s', async (_, how, moments) => {
      await clean('worker', how, 'exit', moments.at(-1)!);
    });

    test('throws in a run', () => clean('worker', 'running', 'throw', 33));

    test.each(['running', 'stubborn', 'creatingFromBytes'])('is there when the process exits, %s', (how) =>
      clean('exitOverWorker', how),
    );

    test('uses it beside others and the main thread', () => clean('severalAtOnce'));
  });

  test('buffers, sessions, tensors and outputs are dropped, closed and disposed in random orders', async () => {
    await clean('randomOrders', 1, every ? 20 : 5);
  });
}
