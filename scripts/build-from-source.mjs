// Builds the addon of an installed package, for systems that no prebuilt binary fits:
//
//   npm run build-from-source --prefix node_modules/fastsafetensors-node
//
// Downloads nothing: Node's headers come from beside the node that runs this, or from npm's `nodedir`; node-addon-api
// from the project. node-gyp-build prefers what is built here to a prebuilt binary.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliDecompressSync } from 'node:zlib';

const top = dirname(dirname(fileURLToPath(import.meta.url)));

function fail(message) {
  console.error(`fastsafetensors-node: ${message}`);
  process.exit(1);
}

if (existsSync(join(top, 'scripts', 'setup.mjs'))) fail('this is a clone: run `npm run setup`');
if (process.platform !== 'linux') fail(`the addon is for Linux, this is ${process.platform}`);
try {
  createRequire(join(top, 'package.json')).resolve('node-addon-api');
} catch {
  fail('building needs the C++ headers of node-addon-api: `npm install --no-save node-addon-api@8` in your project');
}
const folders = [process.env.npm_config_nodedir, resolve(process.execPath, '..', '..')];
const nodedir = folders.find((folder) => folder && existsSync(join(folder, 'include', 'node', 'common.gypi')));
if (!nodedir) {
  fail(
    `Node's headers are not beside ${process.execPath}; set npm's nodedir to where they are ` +
      '(npm_config_nodedir=/usr), the folder that has include/node/node_api.h',
  );
}
if (!existsSync(join(top, 'csrc'))) {
  let input;
  try {
    input = brotliDecompressSync(readFileSync(join(top, 'source.tar.br')));
  } catch (cause) {
    fail(`source.tar.br cannot be read: ${cause.message}; install the package again`);
  }
  const { error, status } = spawnSync('tar', ['-xf', '-'], { cwd: top, input, stdio: ['pipe', 'inherit', 'inherit'] });
  if (error || status !== 0) fail(`source.tar.br could not be unpacked: ${error?.message ?? `exit code ${status}`}`);
}
// npm puts its own node-gyp on the path of the scripts that it runs.
const args = ['rebuild', `--nodedir=${nodedir}`];
const { error, status } = spawnSync('node-gyp', args, { cwd: top, stdio: 'inherit' });
if (error) fail(`node-gyp does not start (${error.message}): run this by npm, which has it`);
if (status !== 0) fail('the addon could not be built; it needs g++ with C++17, make and python3');
