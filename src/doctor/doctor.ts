import * as check from '../base/checks.js';
import type { DoctorCheck } from './check.js';

export type { DoctorCheck };

/** What doctor() found. */
export interface DoctorReport {
  /** Nothing is broken. */
  ok: boolean;
  checks: DoctorCheck[];
}

export interface DoctorOptions {
  /** Where models lie: what its file system can do is tried there. Default: the folder of temporary files. */
  folder?: string | URL;
}

/**
 * What is there of the addon, GPUs, cuFile, 3FS, limits of the system and frameworks, and what to do about what is not.
 * Libraries are loaded in processes of their own, each with a limit of time: what crashes or hangs there is 'broken'
 * here. Rejects with INVALID_ARGUMENT for wrong options only.
 */
export async function doctor(options: DoctorOptions = {}): Promise<DoctorReport> {
  check.takesAtMost(1, arguments, 'doctor');
  const { folder } = check.checkOptions(options, { folder: check.pathOf });
  // Not with the package: who does not ask shall not wait for it.
  const { allChecks } = require('./all-checks.js') as typeof import('./all-checks.js');
  const checks = await allChecks(folder === undefined ? undefined : check.pathOf(folder, 'folder'));
  return { ok: checks.every(({ state }) => state !== 'broken'), checks };
}
