import { expectAllPassOverThreeFs, LOADER_TESTS } from '../support/three-fs-loaders.js';

/** These count on loads into the host's memory. */
const HOST_TESTS = ['file-changes', 'load-errors', 'parallel-loader'];

test.each([
  ['cpu', [...LOADER_TESTS, ...HOST_TESTS]],
  ['cuda:0', LOADER_TESTS],
])('every loader test holds over 3FS to %s', (device, names) => expectAllPassOverThreeFs(device, names), 600_000);
