/** Opening and reading paths from other people's files: a pipe could block forever, a device never end. */
import { closeSync, constants, fstatSync, openSync, readSync, type Stats } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

// O_NONBLOCK: opening a FIFO must not wait for its writer, which would keep the process from ending. Regular files
// ignore it.
const FLAGS = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;
/** The size of one read: one of 2 GiB or more is refused. */
const MAX_READ_BYTES = 1024 * 1024 * 1024;

/** Opens a regular file for reading; the caller closes it. Rejects with the system's error, or with what was found. */
export async function openRegularFile(path: string): Promise<FileHandle> {
  const handle = await open(path, FLAGS);
  try {
    check(await handle.stat());
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Fills `bytes` from `position` on; returns how many, fewer only at the file's end. Rejects as the system does. */
export async function readAt(handle: FileHandle, bytes: Uint8Array, position: number): Promise<number> {
  let length = 0;
  while (length < bytes.length) {
    const most = Math.min(bytes.length - length, MAX_READ_BYTES);
    const { bytesRead } = await handle.read(bytes, length, most, position + length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return length;
}

/** readAt, at once: for pieces so small and many that a thread for each takes longer than the event loop may wait. */
export function readAtSync(handle: FileHandle, bytes: Uint8Array, position: number): number {
  let length = 0;
  while (length < bytes.length) {
    const read = readSync(handle.fd, bytes, length, bytes.length - length, position + length);
    if (read === 0) break;
    length += read;
  }
  return length;
}

/** A file's bytes. Rejects as openRegularFile, and for more than `maxBytes` or a size that changes meanwhile. */
export async function readRegularFile(path: string, maxBytes = Number.POSITIVE_INFINITY): Promise<Buffer> {
  const handle = await openRegularFile(path);
  try {
    const bytes = bufferFor((await handle.stat()).size, maxBytes);
    return whole(bytes, await readAt(handle, bytes, 0));
  } finally {
    await handle.close();
  }
}

/** The same, synchronously. */
export function readRegularFileSync(path: string, maxBytes = Number.POSITIVE_INFINITY): Buffer {
  const file = openSync(path, FLAGS);
  try {
    const info = fstatSync(file);
    check(info);
    const bytes = bufferFor(info.size, maxBytes);
    let length = 0;
    while (length < bytes.length) {
      const read = readSync(file, bytes, length, Math.min(bytes.length - length, MAX_READ_BYTES), length);
      if (read === 0) break;
      length += read;
    }
    return whole(bytes, length);
  } finally {
    closeSync(file);
  }
}

function check(info: Stats): void {
  if (!info.isFile())
    throw problem(`expected a regular file, found ${kindOf(info)}`, info.isDirectory() ? 'EISDIR' : 'EINVAL');
}

/** What messages call a thing that is no regular file. */
export function kindOf(info: Stats): string {
  if (info.isDirectory()) return 'a folder';
  if (info.isFIFO()) return 'a named pipe';
  if (info.isSocket()) return 'a socket';
  return 'a device';
}

function bufferFor(size: number, maxBytes: number): Buffer {
  if (size > maxBytes) throw problem(`expected at most ${maxBytes} bytes, found ${size}`);
  return Buffer.allocUnsafeSlow(size + 1); // one byte more, to notice a file that grows
}

function whole(bytes: Buffer, length: number): Buffer {
  if (length !== bytes.length - 1)
    throw problem(`expected ${bytes.length - 1} bytes, found ${length < bytes.length ? length : 'more'}`);
  return bytes.subarray(0, length);
}

/** An error like the system's own. */
function problem(message: string, code = 'EINVAL'): NodeJS.ErrnoException {
  return Object.assign(new Error(message), { code, syscall: 'read' });
}
