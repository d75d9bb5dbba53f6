import type { FileCalls } from '../base/waiting.js';
import type { Device } from '../device/device.js';
import type { EngineOptions, Fallback, ReaderOptions } from '../native/core.js';
import type { CopierConstructor } from './copier.js';

/**
 * What a copier of this package is: a reader of the core, and how the engine uses it. Loaders run it as one engine for
 * all files.
 */
export interface EngineSpec {
  readonly reader: ReaderOptions;
  readonly engine: EngineOptions;
  /** Staging lies on the NUMA node of the GPU; default: true. */
  readonly near?: boolean;
  /** What reads in place of `reader` where hardly any of the files is in the page cache, and they are on a disk. */
  readonly ifCold?: ReaderOptions;
  /** Tensors lie in memory that host and device share: see availability.ts. */
  readonly unified?: boolean;
  /**
   * For a reader with slots in device memory (ReaderNeeds.device_slots): what reads in its place where dtypes are
   * converted, and why, for the report.
   */
  readonly conversionFallback?: { readonly copier: string; readonly reason: string; readonly spec: EngineSpec };
  /**
   * Looks at the files before an engine is made for them, off the event loop. Rejects where they cannot be read like
   * this. `calls` limits the looks.
   */
  readonly resolveForFiles?: (files: readonly string[], calls?: FileCalls) => Promise<ResolvedSpec>;
}

/** How certain files are read. */
export interface ResolvedSpec {
  readonly spec: EngineSpec;
  /** The name of the copier that `spec` is. */
  readonly copier: string;
  readonly fallbacks: readonly Fallback[];
}

/** Makes a copier of this package from a loader's options; a constructor where the user's object reads ('3fs'). */
export type SpecFactory = (
  device: Device,
  options: Readonly<Record<string, unknown>>,
) => EngineSpec | CopierConstructor;

export const ENGINE: unique symbol = Symbol('fastsafetensors-node.engine');

/** A constructor whose copiers are an engine's, so that loaders can use the engine directly. See engineConstructor. */
export type EngineConstructor = CopierConstructor & { readonly [ENGINE]: EngineSpec };

export function engineOf(make: CopierConstructor): EngineSpec | undefined {
  return (make as Partial<EngineConstructor>)[ENGINE];
}
