import { expectClean } from './support/child.js';

test('a header that needs more memory than there is is OUT_OF_HOST_MEMORY, and the process goes on', async () => {
  await expectClean('low-memory.child.cjs', ['shapeOfMillions']);
});
