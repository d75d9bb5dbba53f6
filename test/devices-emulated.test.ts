import { emulators } from 'fastsafetensors-node/testing';
import { expectClean } from './support/child.js';
import { ownCopier } from './support/own-copier.js';

// Several devices on emulated GPUs, which crash a host that touches their memory, copy late, and abort where memory is
// freed that a copy still uses, or where some is left at the end.

const gpus = (options: Record<string, string | number> = {}): Record<string, string> =>
  emulators.cuda.env({ DEVICES: 2, DELAY_US: 50, JITTER_US: 200, LEAKS: 'abort-memory', ...options });
const flags = ['--expose-gc'];

test.each(['nogds', 'gds'])('%s gives every byte by every loader', async (copier) => {
  await expectClean('devices-emulated.child.cjs', ['everyByte', copier], {
    env: { ...gpus(), ...emulators.cufile.env({ LEAKS: 'abort' }) },
    flags,
  });
});

test('unified gives every byte by every loader', async () => {
  const env = { ...gpus(), FASTSAFETENSORS_UNIFIED_MEM: '1' };
  await expectClean('devices-emulated.child.cjs', ['everyByte', 'unified'], { env, flags });
});

test("'3fs' gives every byte, and the GPUs share a ring", async () => {
  const env = { ...ownCopier('3fs', 'cpu'), ...gpus() };
  await expectClean('devices-emulated.child.cjs', ['threeFs'], { env, flags });
});

test('a budget is never exceeded on any device, by the count of the driver itself', async () => {
  // A tensor takes 1.2 MB. stderr would have a line for each call that is refused.
  const budget = 2_500_000;
  await expectClean('devices-emulated.child.cjs', ['budget', `${budget}`], {
    env: gpus({ MEMORY: budget, VERBOSE: 1 }),
    flags,
  });
});

test.each([
  ['execute:1:700', 'CUDA_ERROR'],
  ['execute:9:700', 'CUDA_ERROR'],
  ['execute:40:700', 'CUDA_ERROR'],
  ['cuMemAlloc_v2:0:2', 'OUT_OF_DEVICE_MEMORY'],
  ['cuMemAlloc_v2:2:999', 'CUDA_ERROR'],
  ['cuMemcpyHtoDAsync_v2:5:719', 'CUDA_ERROR'],
  ['cuStreamCreate:2:999', 'CUDA_ERROR'],
])('%s ends the load on both GPUs, and leaves nothing', async (failure, code) => {
  const env = gpus({ FAIL: failure, LEAKS: failure.startsWith('cuMemAlloc') ? 'abort-memory' : 'off' });
  await expectClean('devices-emulated.child.cjs', ['fails', code], { env, flags });
});

test('close() and aborts at any moment leave nothing on either GPU', async () => {
  await expectClean('devices-emulated.child.cjs', ['ends'], { env: gpus(), flags });
});
