// Brings a clone to where the package can be used and tested: dependencies, the addon and its emulators, dist/. Does
// only what is missing or out of date, so every command can begin with it. Downloads nothing but npm packages.
import { buildAddon, configure, has } from './cmake.mjs';
import { buildDist, installDependencies } from './dist.mjs';

function fail(message) {
  console.error(`setup: ${message}`);
  process.exit(1);
}

try {
  installDependencies();
} catch (error) {
  fail(error.message);
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
  if (Date.now() - started > 5000)
    console.log(`setup: built the addon in ${((Date.now() - started) / 1000).toFixed(0)} s`);
  await buildDist();
} catch (error) {
  fail(error.message);
}
