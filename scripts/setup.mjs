// Brings a clone to where the package can be used and tested: dependencies, the addon and its emulators, dist/. Does
// only what is missing or out of date, so every command can begin with it. Downloads nothing but npm packages.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildAddon, configure, has, top } from './cmake.mjs';

function fail(message) {
  console.error(`setup: ${message}`);
  process.exit(1);
}

function run(what, command, args) {
  const result = spawnSync(command, args, { cwd: top, encoding: 'utf8' });
  if (result.status === 0) return;
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
  const reason = result.error ? result.error.message : `exit code ${result.status}`;
  fail(`${what} failed: ${reason} (${command} ${args.join(' ')})`);
}

// ---- dependencies: when package-lock.json is not the one that was installed ----
const lock = readFileSync(join(top, 'package-lock.json'), 'utf8');
const stamp = join(top, 'node_modules', '.fastsafetensors-setup');
if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== lock) {
  console.log('setup: installing dependencies (npm install)');
  // Not `npm ci`: it refuses a lock file that lacks packages for other platforms, which npm leaves out where a registry
  // has none of them.
  run('npm install', 'npm', ['install', '--no-save', '--ignore-scripts', '--no-audit', '--no-fund']);
  writeFileSync(stamp, lock);
}

// ---- the addon: CMake knows what is out of date ----
for (const [command, remedy] of [
  ['cmake', 'apt-get install cmake'],
  ['c++', 'apt-get install g++'],
]) {
  if (!has(command)) fail(`${command} is needed to build the addon; install it (${remedy})`);
}
const started = Date.now();
try {
  configure('dev');
  buildAddon();
} catch (error) {
  fail(error.message);
}
if (Date.now() - started > 5000)
  console.log(`setup: built the addon in ${((Date.now() - started) / 1000).toFixed(0)} s`);

// ---- dist/, without the outputs of sources that were moved or removed: they would be packed ----
const dist = join(top, 'dist');
mkdirSync(dist, { recursive: true });
for (const name of readdirSync(dist, { recursive: true })) {
  const output = name.match(/^(.*?)(?:\.d)?\.(m?)[jt]s(?:\.map)?$/);
  if (name.endsWith('.map') || (output && !existsSync(join(top, `${output[1]}.${output[2]}ts`))))
    rmSync(join(dist, name));
}
// What tsc remembers lies in dist/ as well: whoever deletes the folder gets all of it again.
const declarations = ['--emitDeclarationOnly', '--incremental', '--tsBuildInfoFile', 'dist/tsc.json'];
run('tsc', process.execPath, [join('node_modules', 'typescript', 'bin', 'tsc'), '-p', '.', ...declarations]);
const { emitJavaScript } = await import('./emit-js.mjs'); // once its packages are there
await emitJavaScript().catch((error) => fail(`esbuild failed: ${error.message}`));
