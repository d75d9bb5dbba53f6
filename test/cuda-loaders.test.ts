import { expectAllPassOn } from './support/cuda-loaders.js';

// Some loader tests that need no child process, on both emulated GPUs: those of what reads, cuts and fails. test/long
// has all of them, from both kinds of threads.

test.each([
  ['cuda:0', 'main thread', ['load-errors', 'shards', 'slices']],
  ['cuda:1', 'worker thread', ['load-errors']],
] as const)(
  'loader tests hold on %s, from a %s',
  (device, thread, files) => expectAllPassOn(device, thread, files),
  180_000,
);
