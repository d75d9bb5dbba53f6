import { randomBytes } from 'node:crypto';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { FastSafetensorsError, ioError } from './errors.js';

/** Smaller pieces are collected into writes of this size. */
const CHUNK_BYTES = 1024 * 1024;
/** Larger pieces are written in parts of this size, which every platform takes. */
const MAX_WRITE_BYTES = 64 * 1024 * 1024;
/** Codes of a folder that cannot be synced: unsupported by the file system, or no right to read the folder. */
const FOLDER_SYNC_UNSUPPORTED = new Set(['EINVAL', 'ENOTSUP', 'ENOSYS', 'EISDIR', 'EPERM', 'EACCES']);

/**
 * Writes a file atomically: readers see the old file or the whole new one, also after a power failure. The bytes of all
 * pieces go to a temporary file in the same folder, which is synced and renamed over `path`; then the folder is synced.
 * On failure the temporary file is removed and `path` is unchanged. IO_ERROR.
 */
export async function writeAtomically(path: string, pieces: Iterable<Uint8Array>): Promise<void> {
  const temporary = temporaryIn(dirname(path));
  try {
    const file = await open(temporary, 'wx', 0o666);
    try {
      for (const chunk of chunksOf(pieces)) await writeWhole(file, chunk);
      await file.sync();
    } finally {
      await file.close();
    }
    await moveOver(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined); // the first error is the one to report
    throw error instanceof FastSafetensorsError ? error : ioError('write', path, error);
  }
}

/** A path in `folder` that no other file has, for a file that `moveOver` gives its name. */
export function temporaryIn(folder: string): string {
  return join(folder, `.fst-${process.pid}-${randomBytes(8).toString('hex')}.tmp`);
}

/** Renames a synced file over another path of its folder, so that it lasts through a power failure. IO_ERROR. */
export async function moveOver(temporary: string, path: string): Promise<void> {
  try {
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (cause) {
    throw ioError('write', path, cause);
  }
}

async function syncFolder(folder: string): Promise<void> {
  try {
    const handle = await open(folder, 'r');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (!FOLDER_SYNC_UNSUPPORTED.has((error as NodeJS.ErrnoException).code ?? '')) throw error;
  }
}

/** The same bytes in pieces fit for one write each. A piece is valid until the next is asked for. */
function* chunksOf(pieces: Iterable<Uint8Array>): Generator<Uint8Array, void, void> {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  let filled = 0;
  for (const piece of pieces) {
    if (filled > 0 && filled + piece.byteLength > CHUNK_BYTES) {
      yield chunk.subarray(0, filled);
      filled = 0;
    }
    if (piece.byteLength < CHUNK_BYTES) {
      chunk.set(piece, filled);
      filled += piece.byteLength;
    } else {
      for (let at = 0; at < piece.byteLength; at += MAX_WRITE_BYTES) yield piece.subarray(at, at + MAX_WRITE_BYTES);
    }
  }
  if (filled > 0) yield chunk.subarray(0, filled);
}

async function writeWhole(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.byteLength; ) {
    const { bytesWritten } = await file.write(bytes, at, bytes.byteLength - at);
    if (bytesWritten === 0) throw new Error(`none of ${bytes.byteLength - at} bytes could be written`);
    at += bytesWritten;
  }
}
