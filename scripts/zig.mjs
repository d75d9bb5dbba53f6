// The cross compiler of the prebuilt binaries: zig, which has clang, libc++ and the C libraries of every target in one
// package of PyPI. Its version and the hashes of its files stand in zig-requirements.txt.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = dirname(dirname(fileURLToPath(import.meta.url)));
const requirements = join(top, 'scripts', 'zig-requirements.txt');
const version = readFileSync(requirements, 'utf8').match(/^ziglang==(\S+)/m)[1];
const folder = join(top, 'build', `zig-${version}`);

/** What it compiled for any target, its libc++ too. */
export const zigCache = join(folder, 'cache');

/** The path of zig, installed by pip on the first call: 100 MB, kept in build/. */
export function zig() {
  const program = join(folder, 'ziglang', 'zig');
  if (existsSync(program)) return program;
  console.error(`prebuild: installing zig ${version} from PyPI`);
  const pip = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps', '--target', folder];
  const args = [...pip, '--only-binary', ':all:', '--require-hashes', '-r', requirements];
  const { status, error } = spawnSync('python3', args, { stdio: ['ignore', 'inherit', 'inherit'] });
  if (status !== 0 || !existsSync(program)) {
    const reason = error ? error.message : `exit code ${status}`;
    throw new Error(
      `zig ${version} could not be installed: ${reason} (python3 ${args.join(' ')}); it needs python3 with pip ` +
        '(apt-get install python3-pip) and PyPI or a mirror of it',
    );
  }
  return program;
}
