import type { SpecFactory } from './engine-spec.js';
import { engineOptions, nogds } from './nogds.js';

/** GPUDirect Storage: cuFile reads into GPU memory past the host's. 'nogds' reads the files that it refuses. */
export const gds: SpecFactory = (device, options) => ({
  // Chosen by name, cuFile's compatibility mode is accepted; 'auto' has a better choice.
  reader: { kind: 'gds', threads: options.maxThreads, chosen: options.copier !== 'auto' },
  engine: engineOptions(options),
  near: options.setNuma !== false,
  conversionFallback: { copier: 'nogds', reason: 'dtypes are converted in host memory', spec: nogds(device, options) },
});
