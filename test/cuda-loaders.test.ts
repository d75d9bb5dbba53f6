import { expectAllPassOn } from './support/cuda-loaders.js';

// Loader tests that need no child process, on both emulated GPUs. test/long has all of them, from both kinds of
// threads: what a worker's own thread changes shows in those that read, fail and are ended.

const FROM_WORKERS = ['read-back', 'load-errors', 'shards'];

test.each([
  ['cuda:0', 'main thread', [...FROM_WORKERS, 'slices', 'truncation', 'dtype-conversion']],
  ['cuda:1', 'worker thread', FROM_WORKERS],
] as const)(
  'loader tests hold on %s, from a %s',
  (device, thread, files) => expectAllPassOn(device, thread, files),
  180_000,
);
