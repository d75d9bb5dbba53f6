import { runChild } from '../support/child.js';
import { OWN_COPIERS, ownCopier } from '../support/own-copier.js';
import { endAtRandom, seed } from '../support/random-ends.js';
import { testFolder } from '../support/tensor-files.js';

// What exit-copiers.test.ts tries five times.

const TIMES = 200;

const folder = testFolder();

describe.each(OWN_COPIERS)('%s to %s', (copier, device) => {
  const env = { ...ownCopier(copier, device, { midway: true }), TMPDIR: folder, KEEP_FOLDER: '1' };
  test.each(['exit', 'uncaught'] as const)(
    `ended by %s at ${TIMES} random moments of loads, a process has the right exit code`,
    async (ending) => {
      const wrong = await endAtRandom(ending, TIMES, (...args) =>
        runChild('exit.child.cjs', ['endAt', ...args], { env }),
      );
      console.log(`${copier} to ${device}, ${ending}, seed ${seed}: ${TIMES - wrong.length} of ${TIMES} as expected`);
      expect({ seed, wrong }).toEqual({ seed, wrong: [] });
    },
  );
});
