import { emulators } from '../../src/testing/index.js';

/** The environment of ranks that broadcast by the emulated NCCL, on up to four emulated GPUs. */
export const env = (settings: Parameters<typeof emulators.nccl.env>[0] = {}): Record<string, string> => ({
  ...emulators.cuda.env({ DEVICES: 4, LEAKS: 'abort-memory' }),
  ...emulators.nccl.env(settings),
});
