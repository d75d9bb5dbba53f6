// What npm runs when the package is installed. Builds the addon from source where there is none yet; downloads nothing:
// Node's headers come from beside the node that runs this, or from npm's `nodedir`.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = dirname(dirname(fileURLToPath(import.meta.url)));

function isThere() {
  if (existsSync(join(top, 'build', 'cmake', 'Release', 'fastsafetensors.node'))) return true; // a clone's own
  return spawnSync('node-gyp-build-test', { cwd: top, shell: true, stdio: 'ignore' }).status === 0;
}

if (process.platform === 'linux' && !isThere()) {
  const folders = [process.env.npm_config_nodedir, resolve(process.execPath, '..', '..')];
  const nodedir = folders.find((folder) => folder && existsSync(join(folder, 'include', 'node', 'common.gypi')));
  if (!nodedir) {
    console.error(
      `fastsafetensors-node: the addon has to be built and Node's headers are not beside ${process.execPath}; where ` +
        `downloading them is fine, run \`npx node-gyp rebuild\` in ${top}, else set npm's nodedir to where they are`,
    );
    process.exit(1);
  }
  // npm puts its own node-gyp on the path of the scripts that it runs.
  const built = spawnSync('node-gyp', ['rebuild', `--nodedir=${nodedir}`], { cwd: top, shell: true, stdio: 'inherit' });
  if (built.status !== 0) {
    console.error('fastsafetensors-node: the addon could not be built; it needs g++, make and python3');
    process.exit(1);
  }
}
