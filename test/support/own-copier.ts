import { emulators } from 'fastsafetensors-node/testing';

/** Built-in copiers, each with a device that it loads to: what lives and ends of processes are tried with. */
export const OWN_COPIERS = [
  ['nogds', 'cpu'],
  ['nogds', 'cuda:0'],
  ['gds', 'cuda:0'],
  ['3fs', 'cpu'],
  ['3fs', 'cuda:0'],
] as const;

/**
 * The environment of a child process whose loads are `own` of child-helpers.cjs, over emulated libraries that end the
 * process when they are misused. Each read of cuFile and 3FS takes `readMs` at least, each copy of CUDA half of it.
 * `midway`: the process may end in the middle of a load, which leaves what it holds.
 */
export function ownCopier(
  copier: string,
  device: string,
  { readMs = 1, midway = false }: { readMs?: number; midway?: boolean } = {},
): Record<string, string> {
  return {
    FST_TEST_DEVICE: '',
    TEST_COPIER: copier,
    TEST_DEVICE: device,
    // Each loader of 'gds' has slots of 48 MiB in device memory.
    ...emulators.cuda.env({
      MEMORY: 2 ** 35,
      DELAY_US: readMs * 500,
      JITTER_US: 200,
      LEAKS: midway ? 'off' : 'abort-memory',
    }),
    ...emulators.cufile.env({ DELAY_US: readMs * 1000, LEAKS: midway ? 'off' : 'abort' }),
    ...emulators.hf3fs.env({ LATENCY_MS: readMs, LEFT: !midway }),
  };
}
