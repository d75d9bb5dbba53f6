import { FastSafetensorsError, ioError } from '../base/errors.js';
import type { FileCalls } from '../base/waiting.js';
import { fileCall, native, stat } from '../native/addon.js';
import type { NativeFileIdentity } from '../native/packed.js';

/**
 * Checks that the path still means the file whose header was read; nothing for a header from a buffer. For those that
 * read data without the core, which checks in the same way (csrc/base/file_identity.h). FILE_CHANGED, IO_ERROR.
 */
export async function checkUnchanged(
  path: string,
  identity: NativeFileIdentity | null,
  calls?: FileCalls,
): Promise<void> {
  if (!identity) return;
  const now = await stat(path, calls).catch((cause) => {
    throw ioError('read', path, cause);
  });
  const { dev, ino, size, mtimeNs } = now;
  const same = ino === identity.ino && BigInt(size) === identity.size && mtimeNs === identity.mtimeNs;
  // A 3FS whose daemon was restarted is another device with the same files.
  if (same && dev === identity.dev) return;
  if (same && (await fileCall('the mount of', path, () => native().isOnThreeFs(path), calls))) return;
  let what: string;
  if (dev !== identity.dev || ino !== identity.ino) what = 'it was replaced by another file';
  else if (BigInt(size) !== identity.size) what = `its size went from ${identity.size} to ${size} bytes`;
  else what = 'its modification time moved';
  const message = `${path} changed since its header was read: ${what}; load it again when nobody writes to it`;
  throw new FastSafetensorsError('FILE_CHANGED', message, { path });
}
