import { expectAllPassOn } from './support/cuda-loaders.js';

// Loader tests that need no child process, on both emulated GPUs. test/long has all of them, from both kinds of
// threads.

const LOADER_TESTS = ['read-back', 'slices', 'truncation', 'load-errors', 'shards', 'dtype-conversion'];

test.each([
  ['cuda:0', 'main thread'],
  ['cuda:1', 'worker thread'],
] as const)(
  'loader tests hold on %s, from a %s',
  (device, thread) => expectAllPassOn(device, thread, LOADER_TESTS),
  180_000,
);
