// What npm runs before it packs: a package without dist/ or one of its binaries is none. FASTSAFETENSORS_PACK=host, for
// tests of the package, builds only the binary of this machine; those of other machines stay as they are, if there.
// With --emulators for packages/emulators.
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { top } from './cmake.mjs';
import { buildDist, installDependencies, packSource } from './dist.mjs';
import { hostTarget, prebuild, prebuiltPaths, targets } from './prebuild.mjs';

// npm takes what is printed here for a part of its own output: `npm pack --json` would not be JSON.
console.log = console.error;
const asked = process.env.FASTSAFETENSORS_PACK;
const what = process.argv.includes('--emulators') ? 'emulators' : 'addon';
const folder = what === 'emulators' ? join('packages', 'emulators', 'lib') : 'prebuilds';
try {
  if (asked && asked !== 'host') throw new Error(`FASTSAFETENSORS_PACK is '${asked}', expected 'host' or nothing`);
  if (asked && process.env.npm_command === 'publish')
    throw new Error('FASTSAFETENSORS_PACK is for tests: unset it to publish');
  installDependencies();
  if (what === 'addon') {
    await buildDist();
    packSource();
  }
  const all = Object.keys(targets);
  const wanted = asked ? [hostTarget()] : all;
  prebuild(wanted, what);
  // What is no binary of any target would be packed, too.
  const paths = all.flatMap((target) => prebuiltPaths(target, what));
  for (const { parentPath, name } of filesIn(join(top, folder))) {
    const path = join(parentPath, name);
    if (!paths.some((known) => join(top, known) === path)) rmSync(path);
  }
  if (asked) {
    const others = all.filter((name) => name !== hostTarget() && existsSync(join(top, prebuiltPaths(name, what)[0])));
    const old = others.length > 0 ? `, ${others.join(' and ')} as built before` : '';
    console.error(`prepack: NOT FOR RELEASE: the package has only ${wanted}${old} (FASTSAFETENSORS_PACK=host)`);
  }
} catch (error) {
  console.error(`prepack: ${error.message}`);
  process.exit(1);
}

function filesIn(path) {
  return readdirSync(path, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
}
