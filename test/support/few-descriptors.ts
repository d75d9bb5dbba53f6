import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { emulators } from 'fastsafetensors-node/testing';
import { runChild } from './child.js';

/** Node.js and the addon have about 20 open; a file of 3FS takes two, its ring three for a moment. */
const ENOUGH = 27;

/**
 * Files load in a process that may have `limit` open, or the error names the cause and the remedy. Waiting for what
 * nobody closes would take 90 seconds: longer than a child may.
 */
export async function expectLoadedOrRefused(
  copier: string,
  limit: number,
  files: number,
  env: Readonly<Record<string, string>> = {},
): Promise<void> {
  // With too few the child cannot even remove its folder.
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-few-'));
  try {
    const args = ['fewDescriptors', copier, String(files)];
    const shell = `ulimit -n ${limit}`;
    const { signal, stdout, stderr } = await runChild('three-fs.child.cjs', args, {
      env: { ...emulators.hf3fs.env(), TMPDIR: folder, ...env },
      shell,
    });
    expect(signal).toBeNull();
    if (stdout.startsWith('loaded')) return;
    expect(stdout + stderr).toContain('EMFILE');
    if (stdout !== '') {
      expect(stdout).toContain(`this process may have ${limit} open`);
      expect(stdout).toContain('ulimit -n');
    }
    expect(limit).toBeLessThan(ENOUGH);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
