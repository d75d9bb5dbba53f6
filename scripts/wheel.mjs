// Programs from PyPI, for development only: scripts/<name>-requirements.txt says which version, and the hashes of its
// files.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = dirname(dirname(fileURLToPath(import.meta.url)));

/** The folder that a package has in build/, installed by pip on the first call. */
export function wheel(name) {
  const requirements = join(top, 'scripts', `${name}-requirements.txt`);
  const version = readFileSync(requirements, 'utf8').match(/^[\w-]+==(\S+)/m)[1];
  const folder = join(top, 'build', `${name}-${version}`);
  if (existsSync(folder)) return folder;
  console.error(`installing ${name} ${version} from PyPI`);
  const partial = `${folder}.partial`;
  rmSync(partial, { recursive: true, force: true });
  const pip = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps', '--target', partial];
  const args = [...pip, '--only-binary', ':all:', '--require-hashes', '-r', requirements];
  const { status, error } = spawnSync('python3', args, { stdio: ['ignore', 'inherit', 'inherit'] });
  if (status !== 0) {
    rmSync(partial, { recursive: true, force: true });
    const reason = error ? error.message : `exit code ${status}`;
    throw new Error(
      `${name} ${version} could not be installed: ${reason} (python3 ${args.join(' ')}); it needs python3 with pip ` +
        '(apt-get install python3-pip) and PyPI or a mirror of it',
    );
  }
  renameSync(partial, folder);
  return folder;
}
