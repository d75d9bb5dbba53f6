import type { CopierFactory } from './copier.js';
import { engineConstructor } from './engine-copier.js';
import { engineOptions } from './nogds.js';

/** Ordinary reads straight into memory that the host shares with the GPU. */
export const unified: CopierFactory = (_device, options) =>
  engineConstructor({
    reader: { kind: 'file', threads: options.maxThreads, dropCache: options.dropCache ?? false },
    engine: engineOptions(options),
    unified: true,
  });
