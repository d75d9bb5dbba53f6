import { expectClean } from './support/child.js';

// V8 knows how much memory tensors keep: it collects those dropped without dispose() as it would typed arrays.

const gc = { flags: ['--expose-gc'] };

test('what tensors, copies, typed arrays and loads keep counts once, until it is disposed or collected', async () => {
  await expectClean('external-memory.child.cjs', ['counted'], gc);
});

test('mapped tensors count as little as their page tables, with typed arrays over them too', async () => {
  await expectClean('external-memory.child.cjs', ['mapped'], gc);
});

test('typed arrays over mapped tensors that were collected are no reason to collect again and again', async () => {
  await expectClean('external-memory.child.cjs', ['collectedOnce'], gc);
});

test('V8 hears of the memory of a load when nothing more of it is read, where little was kept before', async () => {
  await expectClean('external-memory.child.cjs', ['heldBack'], gc);
});

test('of a load in batches V8 hears of the tensors that are kept, when it goes on to the next batch', async () => {
  await expectClean('external-memory.child.cjs', ['heldBackBatches'], gc);
});

test('of what was read and is about to be taken V8 hears nothing', async () => {
  await expectClean('external-memory.child.cjs', ['heldBackUntilTaken'], gc);
});

test('each worker counts its own, down to nothing', async () => {
  await expectClean('external-memory.child.cjs', ['inWorker'], gc);
});

test('a model that is loaded again and again, and dropped, beside a load that still reads', async () => {
  await expectClean('external-memory.child.cjs', ['droppedBeside'], gc);
});

test.each([
  ['parallel', 'cpu'],
  ['parallel', 'cuda:0'],
  ['withoutClose', 'cpu'],
  ['buffers', 'cpu'],
  ['lazy', 'cpu'],
])('a model that is streamed again and again, with every tensor dropped: %s, %s', async (way, device) => {
  await expectClean('external-memory.child.cjs', ['dropped', way, device], gc);
});
