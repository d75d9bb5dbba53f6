import type { CopierFactory } from './copier.js';
import { engineConstructor } from './engine-copier.js';

/** Ordinary reads by worker threads: straight into host memory, through staging slots elsewhere. */
export const nogds: CopierFactory = (_device, options) =>
  engineConstructor({
    reader: {
      kind: 'file',
      threads: options.maxThreads,
      direct: options.odirect === true,
      dropCache: options.dropCache ?? false,
    },
    engine: engineOptions(options),
  });

/** What every built-in copier takes from a loader's options. */
export function engineOptions(options: Readonly<Record<string, unknown>>): {
  alwaysStage: boolean;
  maxBytesPerSecond?: number;
  stallTimeoutMs?: number;
  chunkBytes?: number;
} {
  return {
    alwaysStage: options.staging === 'always',
    maxBytesPerSecond: options.maxBytesPerSecond as number | undefined,
    stallTimeoutMs: options.stallTimeoutMs as number | undefined,
    chunkBytes: options.bounceBufferSize as number | undefined,
  };
}
