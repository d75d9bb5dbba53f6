import { expectClean } from './support/child.js';

// Objects may be closed, disposed or dropped in any order: what is left stays whole, and in the end nothing is held.

const gc = { flags: ['--expose-gc'] };

// test/long has a thousand.
test('random orders', async () => {
  await expectClean('collection.child.cjs', ['randomOrders', '1', '60'], gc);
});

test('finalizers run beside those of others', async () => {
  await expectClean('collection.child.cjs', ['registries'], gc);
});

test('an iteration that is dropped in its middle', async () => {
  await expectClean('collection.child.cjs', ['iterations'], gc);
});

test('a large header is freed by the thread that frees', async () => {
  await expectClean('collection.child.cjs', ['header'], gc);
});
