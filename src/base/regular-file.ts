/** Opening what a path of somebody else's names: a pipe would be waited for without end, a device read without bound. */
import { closeSync, constants, fstatSync, openSync, readSync, type Stats } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

// O_NONBLOCK: opening a FIFO must not wait for its writer (such a wait keeps the process from ending); regular files ignore it.
const FLAGS = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;
const READ_AT_ONCE = 1024 * 1024 * 1024;

/** A regular file, opened to be read; the caller closes it. Rejects with the system's error, or with one that says what is there instead of a regular file. */
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

/** The bytes of a regular file, at most `maxBytes`. Rejects as openRegularFile does, and for a file that is larger or changes its size meanwhile. */
export async function readRegularFile(path: string, maxBytes = Number.POSITIVE_INFINITY): Promise<Buffer> {
  const handle = await openRegularFile(path);
  try {
    const bytes = room((await handle.stat()).size, maxBytes);
    let length = 0;
    while (length < bytes.length) {
      const { bytesRead } = await handle.read(bytes, length, Math.min(bytes.length - length, READ_AT_ONCE), length);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    return whole(bytes, length);
  } finally {
    await handle.close();
  }
}

/** The same, at once. */
export function readRegularFileSync(path: string, maxBytes = Number.POSITIVE_INFINITY): Buffer {
  const file = openSync(path, FLAGS);
  try {
    const info = fstatSync(file);
    check(info);
    const bytes = room(info.size, maxBytes);
    let length = 0;
    while (length < bytes.length) {
      const read = readSync(file, bytes, length, Math.min(bytes.length - length, READ_AT_ONCE), length);
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

function kindOf(info: Stats): string {
  if (info.isDirectory()) return 'a folder';
  if (info.isFIFO()) return 'a named pipe';
  if (info.isSocket()) return 'a socket';
  return 'a device';
}

function room(size: number, maxBytes: number): Buffer {
  if (size > maxBytes) throw problem(`expected at most ${maxBytes} bytes, found ${size}`);
  return Buffer.allocUnsafeSlow(size + 1); // a byte more: a file that grows is seen
}

function whole(bytes: Buffer, length: number): Buffer {
  if (length !== bytes.length - 1)
    throw problem(`expected ${bytes.length - 1} bytes, found ${length < bytes.length ? length : 'more'}`);
  return bytes.subarray(0, length);
}

/** As the system's own errors look. */
function problem(message: string, code = 'EINVAL'): NodeJS.ErrnoException {
  return Object.assign(new Error(message), { code, syscall: 'read' });
}
