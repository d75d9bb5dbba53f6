import { expectClean } from './support/child.js';
import { env } from './support/emulated-ranks.js';

// Ranks that read what all have whole together, over the emulated NCCL on emulated GPUs.

test('four processes: every tensor bit for bit, and the model is read once', () =>
  expectClean('broadcast.child.cjs', ['processes'], { env: env() }));

test('what not all ranks want whole, each reads by itself', () =>
  expectClean('broadcast.child.cjs', ['differing'], { env: env() }));

test('calls follow each other, of several loaders as well; other calls are a rank of its own', () =>
  expectClean('broadcast.child.cjs', ['calls'], { env: env() }));

test('ranks that list the files in another order have the same tensors', () =>
  expectClean('broadcast.child.cjs', ['orders'], { env: env() }));

test('tensors of a blob, which its name verifies, are read and broadcast whole', () =>
  expectClean('broadcast.child.cjs', ['blobs'], { env: env() }));

test.each(['before', 'while it waits for its turn'])(
  'a call aborted %s leaves the order of calls as it is',
  async (when) => expectClean('broadcast.child.cjs', ['turns', when], { env: env() }),
);

test('a stallTimeoutMs of Infinity is none, and half a millisecond is one', () =>
  expectClean('broadcast.child.cjs', ['limits'], { env: env() }));

test('thousands of tensors', () => expectClean('broadcast.child.cjs', ['many'], { env: env() }));

test('an id may be any view of its bytes', () => expectClean('broadcast.child.cjs', ['views'], { env: env() }));

test('options that do not go with broadcasts are refused', () =>
  expectClean('broadcast.child.cjs', ['options'], { env: env() }));
