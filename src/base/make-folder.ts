import { mkdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ioError } from './errors.js';

/**
 * Makes a folder and its parents where they do not exist. Not by mkdir's `recursive`, which never ends on a file system
 * that answers ENOENT for what exists, as /proc does. IO_ERROR.
 */
export async function makeFolder(folder: string): Promise<void> {
  try {
    const missing: string[] = [];
    for (let at = folder; !(await exists(at)); at = dirname(at)) {
      missing.push(at);
      if (dirname(at) === at) break;
    }
    for (const path of missing.reverse()) await makeOne(path);
  } catch (cause) {
    throw ioError('make the folder', folder, cause);
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

async function makeOne(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    // Another process may have made it meanwhile.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}
