import { existsSync } from 'node:fs';
import fsp from 'node:fs/promises';

// Failures of single steps of a save, until jest.restoreAllMocks().

/**
 * Renames for which `fails` says so fail with EIO; `nth` counts from 0. Only of what is there: whether there is
 * something to rename, a save sees by trying.
 */
export function failRenames(fails: (nth: number, to: unknown) => boolean): void {
  let renames = 0;
  const { rename } = fsp;
  jest.spyOn(fsp, 'rename').mockImplementation(async (from, to) => {
    if (existsSync(from) && fails(renames++, to))
      throw Object.assign(new Error('no rename'), { code: 'EIO', syscall: 'rename' });
    await rename(from, to);
  });
}

/** As on a file system without hard links. */
export function failLinks(): void {
  jest.spyOn(fsp, 'link').mockRejectedValue(Object.assign(new Error('no links'), { code: 'EPERM' }));
}
