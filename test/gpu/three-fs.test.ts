import { expectAllPassOverThreeFs } from '../support/three-fs-loaders.js';

// The emulated 3FS client fills shared memory that the real driver page-locks and copies from.

test('every loader test holds over 3FS to cuda:0', () => expectAllPassOverThreeFs('cuda:0', undefined, 'real'));
