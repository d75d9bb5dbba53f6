import { expectClean } from '../support/child.js';

test.each([2, 3, 4, 5])('random orders of dropping, a thousand in all (%i)', async (seed) => {
  await expectClean('collection.child.cjs', ['randomOrders', String(seed), '250'], {
    flags: ['--expose-gc'],
    timeoutMs: 500_000,
  });
});
