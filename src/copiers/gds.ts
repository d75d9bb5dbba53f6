import { type CopierFactory, engineOf } from './copier.js';
import { engineConstructor } from './engine-copier.js';
import { engineOptions, nogds } from './nogds.js';

/** GPUDirect Storage: cuFile reads into GPU memory past the host's. Files that cuFile refuses are read as by 'nogds'. */
export const gds: CopierFactory = (device, options) => {
  const conversionFallback = engineOf(nogds(device, options));
  return engineConstructor({
    // By name, cuFile's compatibility mode will do too; 'auto' has better.
    reader: { kind: 'gds', threads: options.maxThreads, chosen: options.copier !== 'auto' },
    engine: engineOptions(options),
    ...(conversionFallback && {
      conversionFallback: { copier: 'nogds', reason: 'dtypes are converted in host memory', spec: conversionFallback },
    }),
  });
};
