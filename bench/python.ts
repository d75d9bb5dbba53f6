/** A python with the packages that others load .safetensors files with. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const FOLDER = join(__dirname, '..', '..', 'build', 'bench-python');

/**
 * FASTSAFETENSORS_PYTHON, or a virtual environment that is made where `make` says so. `reason`: why there is none.
 */
export function pythonPeers(make: boolean): { python: string } | { reason: string } {
  const given = process.env.FASTSAFETENSORS_PYTHON;
  const python = given ?? join(FOLDER, 'bin', 'python');
  if (!given && !existsSync(python)) {
    if (!make) return { reason: 'no python with safetensors and numpy: --peers makes one, in build/bench-python' };
    const made = [
      ['python3', '-m', 'venv', FOLDER],
      [python, '-m', 'pip', 'install', '--quiet', 'numpy', 'safetensors'],
    ].find(([command, ...args]) => spawnSync(command!, args, { stdio: 'inherit' }).status !== 0);
    if (made) return { reason: `${made.join(' ')} failed` };
  }
  const { status, stderr } = spawnSync(python, ['-c', 'import numpy, safetensors'], { encoding: 'utf8' });
  return status === 0 ? { python } : { reason: `${python} lacks safetensors or numpy: ${stderr}` };
}
