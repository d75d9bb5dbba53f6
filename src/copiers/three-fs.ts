import * as check from '../base/checks.js';
import type { FastSafetensorsError } from '../base/errors.js';
import type { FileCalls } from '../base/waiting.js';
import { checked, fileCall, native, settled, statusError } from '../native/addon.js';
import type { Fallback } from '../native/core.js';
import type { Availability } from './availability.js';
import { type ChunkReader, chunkReaderConstructor } from './chunk-reader.js';
import type { EngineSpec, ResolvedSpec, SpecFactory } from './engine-spec.js';
import { engineOptions, nogds } from './nogds.js';

/**
 * DeepSeek 3FS through USRBIO: many reads in flight, into slots of memory shared with the 3FS daemon. Options:
 * `mountPoint` (that of the files when empty), `bufferSize`, `entries`, `ioDepth`, `setNuma`, `fallback`. With `reader`
 * an object of the user reads instead, and no 3FS is needed. @internal
 */
export const threeFs: SpecFactory = (device, options) => {
  if (options.reader !== undefined) return chunkReaderConstructor(options.reader as ChunkReader);
  const { bounceBufferSize: chunk, bufferSize, entries, ioDepth } = options;
  const given = options.mountPoint ?? '';
  const blank = typeof given === 'string' && given.trim() === '';
  const mountPoint = blank ? '' : check.pathOf(given, 'mountPoint');
  const near = options.setNuma !== false;
  const reader = { kind: '3fs', mountPoint, chunk, bufferSize, entries, ioDepth, setNuma: Number(near) };
  const engine = { ...engineOptions(options), chunkBytes: undefined }; // as the reader's
  const spec: EngineSpec = { reader, engine, near };
  const blockSizes = new Map<string, number>(); // by mount: that of the first file, so that one engine serves all

  const resolveForFiles = async (files: readonly string[], calls?: FileCalls): Promise<ResolvedSpec> => {
    const instead = options.fallback === 'nogds';
    const misfits = new Map<string, string>(); // files that cannot be read like this, and why
    const library = settled(native().loadThreeFs()); // beside the mounts: at first it takes a millisecond
    library.catch(() => {}); // awaited below, unless the files are refused before
    try {
      const resolve = () => native().resolveThreeFsMount(files, mountPoint, instead);
      const found = await fileCall('the mount of', files[0] ?? mountPoint, resolve, calls);
      for (const misfit of found.notOnMount) {
        if (!instead || misfit.code !== 'NOT_3FS') throw statusError(misfit);
        misfits.set(misfit.path!, misfit.message);
      }
      await library;
      if (misfits.size === 0) {
        const mount = found.mountPoint;
        if (!blockSizes.has(mount)) blockSizes.set(mount, found.blockSize);
        const onMount = { ...reader, mountPoint: mount, blockSize: blockSizes.get(mount) };
        return { copier: '3fs', spec: { ...spec, reader: onMount }, fallbacks: [] };
      }
    } catch (error) {
      const { code, message } = error as FastSafetensorsError;
      if (!instead || (code !== 'NOT_3FS' && code !== 'COPIER_UNAVAILABLE')) throw error;
      for (const path of files) if (!misfits.has(path)) misfits.set(path, message);
    }
    const [misfit] = misfits.keys();
    const withIt = `it is loaded together with ${misfit}, which is not on 3FS`;
    const fallbacks: Fallback[] = files.map((path) => {
      return { path, from: '3fs', to: 'nogds', reason: misfits.get(path) ?? withIt };
    });
    return { copier: 'nogds', spec: nogds(device, options), fallbacks };
  };
  return { ...spec, resolveForFiles };
};

let loadedEarly = false;

/**
 * Begins to load the client library, off the event loop, once: that takes milliseconds, and a loader of '3fs' will need
 * it. What goes wrong its load says. @internal
 */
export function loadThreeFsEarly(): void {
  if (loadedEarly) return;
  loadedEarly = true;
  try {
    native()
      .loadThreeFs(true)
      .catch(() => {});
  } catch {} // no addon: said where it is needed
}

/** Library, mount, /dev/shm and the limit of locked memory, off the event loop. @internal */
export async function threeFsAvailability(calls?: FileCalls): Promise<Availability> {
  try {
    return await fileCall('the mounts of', '3FS', () => native().threeFsAvailability(), calls);
  } catch (error) {
    return { available: false, reason: (error as Error).message, remedy: "use copier: 'nogds'" };
  }
}

/**
 * The mount point of the 3FS that holds a path, which need not exist. NOT_3FS names the path and its file system;
 * THREEFS_DISCONNECTED, INVALID_ARGUMENT.
 */
export function extractMountPoint(path: string | URL): string {
  check.takesAtMost(1, arguments, 'extractMountPoint');
  const file = check.pathOf(path, 'extractMountPoint');
  return checked(() => native().extractMountPoint(file));
}

/** Path of the 3FS client library, null where there is none. Does not load it. */
export function getHf3fsLibPath(): string | null {
  check.takesAtMost(0, arguments, 'getHf3fsLibPath');
  return checked(() => native().hf3fsLibPath()) || null;
}
