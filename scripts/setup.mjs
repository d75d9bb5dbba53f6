// Brings a clone to where the package can be used and tested: dependencies, the addon and its emulators, dist/. Does only what is missing or out of date, so
// every command can begin with it. Downloads nothing but npm packages.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = dirname(dirname(fileURLToPath(import.meta.url)));

function run(what, command, args) {
  const result = spawnSync(command, args, { cwd: top, encoding: 'utf8' });
  if (result.status === 0) return;
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
  const reason = result.error ? result.error.message : `exit code ${result.status}`;
  console.error(`setup: ${what} failed: ${reason} (${command} ${args.join(' ')})`);
  process.exit(1);
}

function has(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

// ---- dependencies: when package-lock.json is not the one that was installed ----
const lock = readFileSync(join(top, 'package-lock.json'), 'utf8');
const stamp = join(top, 'node_modules', '.fastsafetensors-setup');
if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== lock) {
  console.log('setup: installing dependencies (npm install)');
  // Not `npm ci`: it refuses a lock file that lacks packages for other platforms, which npm leaves out where a registry has none of them.
  run('npm install', 'npm', ['install', '--no-save', '--ignore-scripts', '--no-audit', '--no-fund']);
  writeFileSync(stamp, lock);
}

// ---- the addon: CMake knows what is out of date ----
for (const [command, remedy] of [
  ['cmake', 'apt-get install cmake'],
  ['c++', 'apt-get install g++'],
]) {
  if (!has(command)) {
    console.error(`setup: ${command} is needed to build the addon; install it (${remedy})`);
    process.exit(1);
  }
}
const build = join(top, 'build', 'cmake');
if (!existsSync(join(build, 'CMakeCache.txt'))) {
  console.log('setup: configuring the addon');
  mkdirSync(build, { recursive: true });
  run('cmake', 'cmake', ['-S', '.', '-B', 'build/cmake', ...(has('ninja') ? ['-G', 'Ninja'] : [])]);
}
const started = Date.now();
run('building the addon', 'cmake', ['--build', 'build/cmake', '--parallel', '2', '--target', 'all']);
if (Date.now() - started > 5000)
  console.log(`setup: built the addon in ${((Date.now() - started) / 1000).toFixed(0)} s`);

// ---- dist/ ----
run('tsc', process.execPath, [
  join('node_modules', 'typescript', 'bin', 'tsc'),
  '-p',
  '.',
  '--incremental',
  '--tsBuildInfoFile',
  'build/tsc.json',
]);
