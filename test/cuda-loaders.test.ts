import { expectAllPassOn } from './support/cuda-loaders.js';

// Some loader tests that need no child process, on both emulated GPUs: those of what reads, cuts and fails. test/long
// has all of them, from both kinds of threads.

const FROM_WORKERS = ['load-errors', 'shards'];

test.each([
  ['cuda:0', 'main thread', [...FROM_WORKERS, 'read-back', 'slices']],
  ['cuda:1', 'worker thread', FROM_WORKERS],
] as const)(
  'loader tests hold on %s, from a %s',
  (device, thread, files) => expectAllPassOn(device, thread, files),
  180_000,
);
