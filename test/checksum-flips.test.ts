import { expectFlipsFound } from './support/bit-flips.js';

// Single bits of a file, turned over at random places. test/long has 10,000.

test.each(['xxh3', 'sha256'] as const)('each of 150 flipped bits is found and named by %s', (algorithm) =>
  expectFlipsFound(150, algorithm),
);
