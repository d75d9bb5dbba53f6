import { expectClean } from './support/child.js';

// Bytes that a copier of the user's own writes are the user's until they are copied: nothing that JavaScript does to
// them ends the process.

test.each([
  ['resized', 'a buffer that is resized while it is written is INVALID_ARGUMENT'],
  ['transferred', 'so is one that is transferred and collected'],
  ['small', 'what is written in one piece may go as soon as write has returned'],
  ['lying', 'what a view says of itself is checked against its buffer'],
  ['notAwaited', 'a write that is refused ends the load, also where the copier does not wait for it'],
  ['forgotten', 'so does a submission that fails and that waitIo does not wait for'],
])('%s: %s', async (scenario) => {
  await expectClean('destination-write.child.cjs', [scenario], { flags: ['--expose-gc'] });
});
