import { stat } from 'node:fs/promises';
import { FastSafetensorsError } from '../base/errors.js';
import type { NativeFileIdentity } from '../native/packed.js';

/**
 * Checks that the path still means the file whose header was read, for those that read its data without the core, which
 * checks in the same way (csrc/base/file_identity.h). FILE_CHANGED, IO_ERROR. Nothing to check without an identity, that is
 * for a header from a buffer.
 */
export async function checkUnchanged(path: string, identity: NativeFileIdentity | null): Promise<void> {
  if (!identity) return;
  const now = await stat(path, { bigint: true }).catch((cause) => {
    throw new FastSafetensorsError('IO_ERROR', `cannot read ${path}: ${(cause as Error).message}`, { path, cause });
  });
  let what: string;
  if (now.dev !== identity.dev || now.ino !== identity.ino) what = 'it was replaced by another file';
  else if (now.size !== identity.size) what = `its size went from ${identity.size} to ${now.size} bytes`;
  else if (now.mtimeNs !== identity.mtimeNs) what = 'its modification time moved';
  else return;
  throw new FastSafetensorsError(
    'FILE_CHANGED',
    `${path} changed since its header was read: ${what}; load it again when nobody writes to it`,
    { path },
  );
}
