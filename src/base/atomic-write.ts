import { fsync, type Stats } from 'node:fs';
import { type FileHandle, open, readlink, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname, isAbsolute } from 'node:path';
import { FastSafetensorsError, ioError } from './errors.js';
import type { FileOwner } from './file-owner.js';
import { kindOf } from './regular-file.js';
import { removedAtExit, temporaryIn } from './temporary.js';

/** Smaller pieces are collected into writes of this size. */
const CHUNK_BYTES = 1024 * 1024;
/** Larger pieces are written in parts of this size, which every platform takes. */
const MAX_WRITE_BYTES = 64 * 1024 * 1024;
/** Codes of a folder that cannot be synced: unsupported by the file system, or no right to read the folder. */
const FOLDER_SYNC_UNSUPPORTED = new Set(['EINVAL', 'ENOTSUP', 'ENOSYS', 'EISDIR', 'EPERM', 'EACCES']);
/** As the kernel's. */
const MAX_LINKS = 40;
const PERMISSIONS = 0o7777;

/** Calls `put` once, which gives the new file the path `target`; where it rejects, so does this. */
export type Replacing = (target: string, put: () => Promise<void>) => Promise<void>;

/**
 * Writes a file atomically: readers see the old file or the whole new one, also after a power failure. The bytes of all
 * pieces go to a temporary file in the same folder, which is synced and renamed over `path`; then the folder is synced.
 * On failure the temporary file is removed and `path` is unchanged. A link stays one: what it leads to is written. An
 * existing file keeps its mode and, where that is allowed, its owner and group; what is no regular file is refused.
 * IO_ERROR. With `replacing` the rename is the caller's to do.
 */
export async function writeAtomically(
  path: string,
  pieces: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  replacing?: Replacing,
): Promise<void> {
  let temporary: string | undefined;
  let release: (() => void) | undefined;
  try {
    const target = await targetOf(path);
    temporary = temporaryIn(dirname(target.path));
    release = removedAtExit(temporary);
    // Nobody may read it who may not read the file that it replaces.
    const file = await open(temporary, 'wx', target.replaced ? 0o600 : 0o666);
    try {
      for await (const chunk of chunksOf(pieces)) await writeWhole(file, chunk);
      if (target.replaced) await takeOver(file, target.replaced);
      await sync(file);
    } finally {
      await file.close();
    }
    await replace(temporary, target.path, replacing);
    await syncFolder(dirname(target.path));
  } catch (error) {
    if (temporary) await rm(temporary, { force: true }).catch(() => undefined); // the first error is the one to report
    throw error instanceof FastSafetensorsError ? error : ioError('write', path, error);
  } finally {
    release?.();
  }
}

/**
 * Gives a synced file another path of its folder, as writeAtomically() does, so that it lasts through a power failure.
 * A link to another file system cannot be kept. IO_ERROR.
 */
export async function moveOver(temporary: string, path: string, replacing?: Replacing): Promise<void> {
  try {
    const target = await targetOf(path);
    if (target.replaced) {
      const file = await open(temporary, 'r');
      try {
        await takeOver(file, target.replaced);
        await sync(file);
      } finally {
        await file.close();
      }
    }
    await replace(temporary, target.path, replacing);
    await syncFolder(dirname(target.path));
  } catch (cause) {
    throw cause instanceof FastSafetensorsError ? cause : ioError('write', path, cause);
  }
}

function replace(temporary: string, target: string, replacing: Replacing = (_, put) => put()): Promise<void> {
  return replacing(target, () => rename(temporary, target));
}

/**
 * Where a file that is written to `path` will be, all links followed, and the regular file that is there. IO_ERROR for
 * what is none; else rejects as the system does.
 */
export async function targetOf(path: string): Promise<{ path: string; replaced: Stats | undefined }> {
  const replaced = await stat(path).catch(absent);
  if (!replaced || replaced.isFile()) return { path: await endOfLinks(path), replaced };
  const found = kindOf(replaced);
  const message = `cannot write ${path}: expected a regular file or none, found ${found}; choose another path`;
  throw new FastSafetensorsError('IO_ERROR', message, { path });
}

/** What a link leads to, whether that is there or not; any other path itself. */
async function endOfLinks(path: string): Promise<string> {
  let at = path;
  for (let links = 0; links < MAX_LINKS; ++links) {
    const next = await readlink(at).catch((error) => (error.code === 'EINVAL' ? undefined : absent(error)));
    if (next === undefined) return at;
    // Not join(): `..` after a link to a folder is the parent of what that leads to.
    at = isAbsolute(next) ? next : `${await realpath(dirname(at))}/${next}`;
  }
  throw ioError('write', path, new Error(`more than ${MAX_LINKS} links`));
}

function absent(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error;
}

/** Gives a new file the mode of the one that it replaces and, as far as it may, its owner and group. */
export async function takeOver(file: FileHandle, replaced: FileOwner): Promise<void> {
  const { uid, gid } = await file.stat();
  const owner = process.geteuid?.() === 0 ? replaced.uid : uid; // only root may give files away
  if (owner !== uid || replaced.gid !== gid) await file.chown(owner, replaced.gid).catch(() => undefined);
  // After that, which clears bits of it. Some file systems have one mode for all files, and refuse others.
  const mode = replaced.mode & PERMISSIONS;
  if (((await file.stat()).mode & PERMISSIONS) !== mode) await file.chmod(mode);
}

/** Not FileHandle's own: under Yarn's Plug'n'Play handles have none. */
export function sync({ fd }: FileHandle): Promise<void> {
  return new Promise((resolve, reject) => fsync(fd, (error) => (error ? reject(error) : resolve())));
}

export async function syncFolder(folder: string): Promise<void> {
  try {
    const handle = await open(folder, 'r');
    try {
      await sync(handle);
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (!FOLDER_SYNC_UNSUPPORTED.has((error as NodeJS.ErrnoException).code ?? '')) throw error;
  }
}

/** The same bytes in pieces fit for one write each. A piece is valid until the next is asked for. */
async function* chunksOf(
  pieces: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, void> {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  let filled = 0;
  for await (const piece of pieces) {
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

/** Writes all bytes: at `position`, or where the last write ended. */
export async function writeWhole(file: FileHandle, bytes: Uint8Array, position?: number): Promise<void> {
  for (let at = 0; at < bytes.byteLength; ) {
    const length = Math.min(bytes.byteLength - at, MAX_WRITE_BYTES);
    const place = position === undefined ? null : position + at;
    const { bytesWritten } = await file.write(bytes, at, length, place);
    if (bytesWritten === 0) throw new Error(`none of ${bytes.byteLength - at} bytes could be written`);
    at += bytesWritten;
  }
}
