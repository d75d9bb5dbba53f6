import { expectFlipsFound } from '../support/bit-flips.js';

test.each([
  ['xxh3', 10_000],
  ['sha256', 1000],
] as const)('by %s each of %i flipped bits is found and named', (algorithm, count) =>
  expectFlipsFound(count, algorithm),
);
