import type { Ended } from './child.js';

/** Where random tests begin; what fails says so. FST_TEST_SEED repeats it. */
export const seed = Number(process.env.FST_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));

/** Numbers from 0 to 1 of a seed. */
function randomOf(state: number): () => number {
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Microseconds: half of the processes end while the first work starts up, the others amid later work. */
const UNTIL = { start: 60_000, first: 20_000 };

/**
 * `count` processes, three at a time, that end at random moments of their work as endAt of child-helpers.cjs does, with
 * the arguments that `run` is given. Returns those that ended otherwise or had a word of an emulator on stderr.
 */
export async function endAtRandom(
  ending: 'exit' | 'uncaught',
  count: number,
  run: (...args: string[]) => Promise<Ended>,
): Promise<object[]> {
  const random = randomOf(seed);
  const moments = Array.from({ length: count }, (_, i) => {
    const after = i % 2 === 0 ? 'start' : 'first';
    return [after, String(Math.floor(random() * UNTIL[after]))] as const;
  });
  const wrong: object[] = [];
  const one = async (moment: readonly string[]): Promise<void> => {
    const { code, signal, stdout, stderr } = await run(ending, ...moment);
    const right =
      ending === 'exit'
        ? code === 7 && stdout === '' && stderr === ''
        : code === 1 && stderr.includes('uncaught on purpose') && !/emula/i.test(stderr);
    if (!right) wrong.push({ moment, code, signal, stdout, stderr });
  };
  const worker = async (): Promise<void> => {
    for (let moment = moments.pop(); moment; moment = moments.pop()) await one(moment);
  };
  await Promise.all([worker(), worker(), worker()]);
  return wrong;
}
