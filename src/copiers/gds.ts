import type { CopierFactory } from './copier.js';
import { engineConstructor } from './engine-copier.js';
import { engineOptions } from './nogds.js';

/** GPUDirect Storage: cuFile reads into GPU memory past the host's. Files that cuFile refuses are read as by 'nogds'. */
export const gds: CopierFactory = (_device, options) =>
  engineConstructor({
    // By name, cuFile's compatibility mode will do too; 'auto' has better.
    reader: { kind: 'gds', threads: options.maxThreads, chosen: options.copier !== 'auto' },
    engine: engineOptions(options),
  });
