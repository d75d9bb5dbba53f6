import type { SpecFactory } from './engine-spec.js';
import { engineOptions } from './nogds.js';

/** Ordinary reads straight into memory that the host shares with the GPU. */
export const unified: SpecFactory = (_device, options) => ({
  reader: { kind: 'file', threads: options.maxThreads, dropCache: options.dropCache ?? false },
  engine: engineOptions(options),
  unified: true,
});
