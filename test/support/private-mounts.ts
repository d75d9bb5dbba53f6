import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const daemon = join(__dirname, '..', '..', 'build', 'cmake', 'emulators', 'hf3fs_fuse');

/** A shell's preamble: what follows runs in a mount namespace of its own, with a /dev/shm of `shm`, empty. */
export const inPrivateMounts = (shm: string): string => {
  const mount = `mount -t tmpfs -o size=${shm} tmpfs /dev/shm`;
  const again = `exec unshare -m bash -c '${mount} && exec "$@"' bash "$@"`;
  return `if [ -z "$PRIVATE_MOUNTS" ]; then export PRIVATE_MOUNTS=1; ${again}; fi`;
};

/** Why nothing can be mounted here; undefined where it can. */
export function whyNoMounts(): string | undefined {
  const { status, stderr } = spawnSync('unshare', ['-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/dev/shm']);
  return status === 0 ? undefined : `no right to mount: ${String(stderr ?? 'unshare is not there').trim()}`;
}

/** Why support/fuse-mount.cjs cannot work here; undefined where it can. */
export function whyNoFuse(): string | undefined {
  if (!existsSync(daemon)) return `${daemon} is not built (libfuse3-dev has to be there when the addon is built)`;
  if (!existsSync('/dev/fuse')) return '/dev/fuse is not there';
  if (spawnSync('fusermount3', ['--version']).status !== 0) return 'fusermount3 is not installed';
  return whyNoMounts();
}

/** `test`, or where `why` is given a test that is skipped, which says so. */
export function testUnless(why: string | undefined): jest.It {
  if (why === undefined) return test;
  console.warn(`skipped: ${why}`);
  return test.skip;
}
