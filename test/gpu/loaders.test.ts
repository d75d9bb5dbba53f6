import { expectAllPassOn } from '../support/cuda-loaders.js';

// Every loader test with cuda:0 as the device of loaders that name none.

const IN_PROCESS = [
  'read-back',
  'slices',
  'truncation',
  'load-errors',
  'shards',
  'dtype-conversion',
  'file-changes',
  'files-buffer',
  'parallel-loader',
  'copiers',
  'progress',
  'odd-names',
  'malformed',
  'save-file',
];
const CHILDREN = ['worker-threads', 'ending', 'exit', 'collection', 'many-files'];

test.each(['main thread', 'worker thread'] as const)('every loader test holds from a %s', (thread) =>
  expectAllPassOn('cuda:0', thread, IN_PROCESS, 'real'),
);

test('every test of lives, ends and workers holds', () => expectAllPassOn('cuda:0', 'main thread', CHILDREN, 'real'));
