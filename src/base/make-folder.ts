import { mkdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { FastSafetensorsError } from './errors.js';

/**
 * Makes a folder and those above it, where they are not there yet. By hand: mkdir's `recursive` never ends where the file system says ENOENT of what it has, as
 * /proc does. IO_ERROR.
 */
export async function makeFolder(folder: string): Promise<void> {
  try {
    const missing: string[] = [];
    for (let at = folder; !(await isThere(at)); at = dirname(at)) {
      missing.push(at);
      if (dirname(at) === at) break;
    }
    for (const path of missing.reverse()) await makeOne(path);
  } catch (cause) {
    throw new FastSafetensorsError('IO_ERROR', `cannot make the folder ${folder}: ${(cause as Error).message}`, {
      path: folder,
      cause,
    });
  }
}

async function isThere(path: string): Promise<boolean> {
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
    // Somebody else may make it at the same time.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}
