import { environmentSwitch } from '../base/checks.js';
import type { EngineOptions } from '../native/core.js';
import type { EngineSpec, SpecFactory } from './engine-spec.js';

/** Ordinary reads by worker threads: straight into host memory, through staging slots for other devices. */
export const nogds = ((_device, options): EngineSpec => {
  const direct = wantsDirect(options);
  const dropCache = options.dropCache ?? false;
  const ring = environmentSwitch('FASTSAFETENSORS_IO_URING') ?? true;
  const reader = { kind: 'file', threads: options.maxThreads, direct: direct === true, dropCache, ring };
  return {
    reader,
    ...(direct === 'auto' &&
      options.mmap !== true &&
      options.staging !== 'mapped' && { ifCold: { ...reader, direct: true } }),
    engine: engineOptions(options),
    near: options.setNuma !== false,
  };
}) satisfies SpecFactory;

/** Whether reads go past the page cache: as `odirect` says, else FASTSAFETENSORS_ODIRECT, else as the files are. */
export function wantsDirect({ odirect = 'auto' }: { readonly odirect?: unknown }): 'auto' | boolean {
  return odirect === 'auto' ? (environmentSwitch('FASTSAFETENSORS_ODIRECT') ?? 'auto') : odirect === true;
}

/** What every built-in copier takes from a loader's options. */
export function engineOptions(options: Readonly<Record<string, unknown>>): EngineOptions {
  return {
    alwaysStage: options.staging === 'always',
    pinsFiles: options.staging === 'mapped',
    maxBytesPerSecond: options.maxBytesPerSecond as number | undefined,
    stallTimeoutMs: options.stallTimeoutMs as number | undefined,
    chunkBytes: options.bounceBufferSize as number | undefined,
  };
}
