import { stat } from 'node:fs/promises';
import { FastSafetensorsError, ioError } from '../base/errors.js';
import type { NativeFileIdentity } from '../native/packed.js';

/**
 * Checks that the path still means the file whose header was read; nothing for a header from a buffer. For those that
 * read data without the core, which checks in the same way (csrc/base/file_identity.h). FILE_CHANGED, IO_ERROR.
 */
export async function checkUnchanged(path: string, identity: NativeFileIdentity | null): Promise<void> {
  if (!identity) return;
  const now = await stat(path, { bigint: true }).catch((cause) => {
    throw ioError('read', path, cause);
  });
  let what: string;
  if (now.dev !== identity.dev || now.ino !== identity.ino) what = 'it was replaced by another file';
  else if (now.size !== identity.size) what = `its size went from ${identity.size} to ${now.size} bytes`;
  else if (now.mtimeNs !== identity.mtimeNs) what = 'its modification time moved';
  else return;
  const message = `${path} changed since its header was read: ${what}; load it again when nobody writes to it`;
  throw new FastSafetensorsError('FILE_CHANGED', message, { path });
}
