import { expectClean } from './support/child.js';

// V8 keeps what it has compiled for a class as long as there is an object of the same layout.

test.each(['tensors', 'buffers', 'plans', 'loads'])(
  'of %s there are examples with the layout of those of a load',
  async (of) => {
    await expectClean('examples-kept.child.cjs', [of], { flags: ['--allow-natives-syntax'] });
  },
);
