import type { SpecFactory } from './engine-spec.js';
import { engineOptions, nogds } from './nogds.js';

/**
 * GPUDirect Storage: cuFile reads into GPU memory past the host's. Files that cuFile refuses are read as by 'nogds'.
 */
export const gds: SpecFactory = (device, options) => ({
  // Chosen by name, cuFile's compatibility mode is accepted; 'auto' has a better choice.
  reader: { kind: 'gds', threads: options.maxThreads, chosen: options.copier !== 'auto' },
  engine: engineOptions(options),
  conversionFallback: {
    copier: 'nogds',
    reason: 'dtypes are converted in host memory',
    spec: nogds(device, options),
  },
});
