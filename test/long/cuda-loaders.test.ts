import { CHILDREN, expectAllPassOn, IN_PROCESS } from '../support/cuda-loaders.js';

// Every loader test on each emulated GPU, from the main thread and from workers.

describe.each(['cuda:0', 'cuda:1'])('on %s', (device) => {
  test.each(['main thread', 'worker thread'] as const)(
    'every loader test holds from a %s',
    (thread) => expectAllPassOn(device, thread, IN_PROCESS),
    300_000,
  );

  test('every test of lives, ends and workers holds', () => expectAllPassOn(device, 'main thread', CHILDREN), 300_000);
});
