/** A python with the packages that others load .safetensors files with. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const FOLDER = join(__dirname, '..', '..', 'build', 'bench-python');

/**
 * FASTSAFETENSORS_PYTHON, or a virtual environment that is made where `make` says so, with these packages. `reason`:
 * why there is none with the first two, which every one of these benchmarks needs.
 */
export function pythonPeers(
  make: boolean,
  packages: readonly string[] = ['numpy', 'safetensors'],
): { python: string } | { reason: string } {
  const given = process.env.FASTSAFETENSORS_PYTHON;
  const python = given ?? join(FOLDER, 'bin', 'python');
  if (!given && !make && !existsSync(python)) {
    return { reason: 'no python with safetensors and numpy: --peers makes one, in build/bench-python' };
  }
  if (!given && make) {
    const steps = [
      ...(existsSync(python) ? [] : [['python3', '-m', 'venv', FOLDER]]),
      [python, '-m', 'pip', 'install', '--quiet', ...packages],
    ];
    const failed = steps.find(([command, ...args]) => spawnSync(command!, args, { stdio: 'inherit' }).status !== 0);
    if (failed) return { reason: `${failed.join(' ')} failed` };
  }
  const { status, stderr } = spawnSync(python, ['-c', 'import numpy, safetensors'], { encoding: 'utf8' });
  return status === 0 ? { python } : { reason: `${python} lacks safetensors or numpy: ${stderr}` };
}

/**
 * The environment in which `python` has another version of a package than its own, "name==version"; it is installed
 * beside the others on the first call. Throws where pip fails.
 */
export function withOther(python: string, one: string): Readonly<Record<string, string>> {
  const folder = `${FOLDER}-${one}`;
  if (!existsSync(folder)) {
    const args = ['-m', 'pip', 'install', '--quiet', '--no-deps', '--target', folder, one];
    if (spawnSync(python, args, { stdio: 'inherit' }).status !== 0) throw new Error(`${args.join(' ')} failed`);
  }
  return { PYTHONPATH: folder };
}

/** Which versions of these packages it has; of those that it has. */
export function versionsOf(python: string, packages: readonly string[]): Readonly<Record<string, string>> {
  const script =
    'import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))';
  const names = packages.map((name) => name.split(/[=<>]/)[0]!);
  const { stdout, stderr, status } = spawnSync(python, ['-c', script, ...names], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${python} does not say its versions: ${stderr}`);
  return JSON.parse(stdout) as Record<string, string>;
}
