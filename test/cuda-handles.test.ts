import { emulators } from 'fastsafetensors-node/testing';
import { expectClean } from './support/child.js';

// exportHandle() and importTensors() for memory of a GPU, in processes that load the emulated driver.

test.each([
  ['sameProcess', 'tensors lie on their GPU, and outlive the handle'],
  ['processes', 'importers read on when one is killed and the handle is closed; nothing is left'],
  ['refused', 'descriptors and descriptions that do not fit'],
  ['unified', 'memory that the host can fill cannot be exported: the error says what can'],
])('%s: %s', async (scenario) => {
  const env = emulators.cuda.env({ LEAKS: 'abort-memory' });
  await expectClean('cuda-handles.child.cjs', [scenario], { flags: ['--expose-gc'], env });
});
