// What npm runs before it packs: a package without dist/ or one of its binaries is none. FASTSAFETENSORS_PACK=host
// leaves out the binaries of other machines, for tests of the package.
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { top } from './cmake.mjs';
import { buildDist, installDependencies, packSource } from './dist.mjs';
import { hostTarget, prebuild, prebuiltPath, targets } from './prebuild.mjs';

// npm takes what is printed here for a part of its own output: `npm pack --json` would not be JSON.
console.log = console.error;
const asked = process.env.FASTSAFETENSORS_PACK;
try {
  if (asked && asked !== 'host') throw new Error(`FASTSAFETENSORS_PACK is '${asked}', expected 'host' or nothing`);
  if (asked && process.env.npm_command === 'publish')
    throw new Error('FASTSAFETENSORS_PACK is for tests: unset it to publish');
  installDependencies();
  await buildDist();
  packSource();
  const wanted = asked ? [hostTarget()] : Object.keys(targets);
  prebuild(wanted);
  // What else lies there would be packed, too.
  const paths = wanted.map((target) => prebuiltPath(target));
  for (const entry of readdirSync(join(top, 'prebuilds'), { recursive: true, withFileTypes: true })) {
    const path = join('prebuilds', entry.parentPath.slice(join(top, 'prebuilds').length), entry.name);
    if (entry.isFile() && !paths.includes(path)) rmSync(join(top, path));
  }
  if (asked) console.error(`prepack: NOT FOR RELEASE: the package has only ${wanted} (FASTSAFETENSORS_PACK=host)`);
} catch (error) {
  console.error(`prepack: ${error.message}`);
  process.exit(1);
}
