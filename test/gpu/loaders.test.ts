import { CHILDREN, expectAllPassOn, IN_PROCESS } from '../support/cuda-loaders.js';

// Every loader test with cuda:0 as the device of loaders that name none.

test.each(['main thread', 'worker thread'] as const)('every loader test holds from a %s', (thread) =>
  expectAllPassOn('cuda:0', thread, IN_PROCESS, 'real'),
);

test('every test of lives, ends and workers holds', () => expectAllPassOn('cuda:0', 'main thread', CHILDREN, 'real'));
