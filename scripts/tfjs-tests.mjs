// Tests against the real @tensorflow/tfjs-node: `npm run test:tfjs [-- --tensorflow 1|2] [jest arguments]`. Sets itself
// up in build/tfjs, once, without the host that tfjs-node's own install downloads from: its JavaScript and sources come
// from npm, TensorFlow 1.15 with its headers from npm too (tfjs-node-lambda-releases), TensorFlow 2 from PyPI
// (tensorflow-cpu); its binding is compiled here. Linux x64 only: there is no such TensorFlow for others.
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  createReadStream,
  createWriteStream,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import { createBrotliDecompress } from 'node:zlib';

const TFJS_NODE = '4.22.0';
const LAMBDA_RELEASES = '1.6.1'; // nodejs12.x-tf2.7.0.br holds libtensorflow 1.15.0
const TENSORFLOW_CPU = '2.21.0';

const top = dirname(dirname(fileURLToPath(import.meta.url)));
const base = join(top, 'build', 'tfjs');

function run(what, command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: base, encoding: 'utf8', maxBuffer: 1 << 28, ...options });
  if (result.status === 0) return;
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
  throw new Error(
    `${what} failed: ${result.error?.message ?? `exit code ${result.status}`} (${command} ${args.join(' ')})`,
  );
}

/** Makes a folder whole or not at all. */
async function once(folder, make) {
  if (existsSync(folder)) return folder;
  const temporary = `${folder}.part`;
  rmSync(temporary, { recursive: true, force: true });
  mkdirSync(temporary, { recursive: true });
  await make(temporary);
  renameSync(temporary, folder);
  return folder;
}

/** tfjs-node and what it needs, as npm has them, unbuilt. */
function packages() {
  return once(join(base, 'packages'), (folder) => {
    console.log(`test:tfjs: installing @tensorflow/tfjs-node ${TFJS_NODE} from npm`);
    writeFileSync(join(folder, 'package.json'), '{"private":true}');
    const install = ['install', '--ignore-scripts', '--no-audit', '--no-fund', `@tensorflow/tfjs-node@${TFJS_NODE}`];
    run('npm install', 'npm', install, { cwd: folder });
  });
}

/** {include, lib}: the headers and libraries of TensorFlow 1.15. */
function tensorflow1() {
  return once(join(base, 'tensorflow-1.15'), async (folder) => {
    console.log('test:tfjs: getting TensorFlow 1.15 from npm (195 MB)');
    run('npm pack', 'npm', ['pack', `tfjs-node-lambda-releases@${LAMBDA_RELEASES}`], { cwd: folder });
    const archive = 'package/nodejs12.x-tf2.7.0.br';
    const packed = `tfjs-node-lambda-releases-${LAMBDA_RELEASES}.tgz`;
    run('tar', 'tar', ['xzf', packed, archive], { cwd: folder });
    const tar = join(folder, 'tensorflow.tar');
    await pipeline(createReadStream(join(folder, archive)), createBrotliDecompress(), createWriteStream(tar));
    const deps = 'node_modules/@tensorflow/tfjs-node/deps';
    run('tar', 'tar', ['xf', tar, `--strip-components=${deps.split('/').length}`, deps], { cwd: folder });
    for (const name of [packed, 'package', 'tensorflow.tar']) rmSync(join(folder, name), { recursive: true });
    // 1.15 lacks the split headers and the strings that tfjs-node 4 includes: strings are not used by these tests.
    for (const name of ['c/tf_datatype.h', 'c/tf_status.h', 'c/tf_tensor.h']) {
      const path = join(folder, 'include', 'tensorflow', name);
      if (!existsSync(path)) writeFileSync(path, '#include "tensorflow/c/c_api.h"\n');
    }
    const platform = join(folder, 'include', 'tensorflow', 'core', 'platform');
    mkdirSync(platform, { recursive: true });
    writeFileSync(
      join(platform, 'ctstring_internal.h'),
      `#include <cstddef>
struct TF_TString { char unused[24]; };
inline void TF_TString_Init(TF_TString*) {}
inline void TF_TString_Copy(TF_TString*, const char*, size_t) {}
inline const char* TF_TString_GetDataPointer(const TF_TString*) { return ""; }
inline size_t TF_TString_GetSize(const TF_TString*) { return 0; }
inline void TF_TString_Dealloc(TF_TString*) {}
`,
    );
  });
}

function tensorflow2() {
  return once(join(base, `tensorflow-${TENSORFLOW_CPU}`), (folder) => {
    console.log(`test:tfjs: getting TensorFlow ${TENSORFLOW_CPU} from PyPI (274 MB)`);
    const platform = ['--only-binary=:all:', '--python-version', '3.11', '--platform', 'manylinux_2_27_x86_64'];
    const pip = ['-m', 'pip', 'download', '--quiet', '--no-deps', ...platform, `tensorflow-cpu==${TENSORFLOW_CPU}`];
    run('pip download', 'python3', pip, { cwd: folder });
    const wheel = readdirSync(folder).find((name) => name.endsWith('.whl'));
    const unpack = `
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
wanted = ('tensorflow/libtensorflow', 'tensorflow/include/tensorflow/c/',
          'tensorflow/include/tensorflow/core/platform/ctstring',
          'tensorflow/include/tsl/platform/ctstring', 'tensorflow/include/xla/tsl/c/')
wheel.extractall('.', [name for name in wheel.namelist() if name.startswith(wanted)])
`;
    run('unpacking the wheel', 'python3', ['-c', unpack, wheel], { cwd: folder });
    rmSync(join(folder, wheel));
    renameSync(join(folder, 'tensorflow', 'include'), join(folder, 'include'));
    const lib = join(folder, 'lib');
    mkdirSync(lib);
    for (const name of ['libtensorflow_framework.so.2', 'libtensorflow_cc.so.2']) {
      renameSync(join(folder, 'tensorflow', name), join(lib, name));
    }
    symlinkSync('libtensorflow_framework.so.2', join(lib, 'libtensorflow_framework.so'));
    symlinkSync('libtensorflow_cc.so.2', join(lib, 'libtensorflow.so'));
    rmSync(join(folder, 'tensorflow'), { recursive: true });
  });
}

/** A tfjs-node whose binding is compiled against one TensorFlow; its path. */
async function tfjsNode(name, tensorflow) {
  const npm = await packages();
  const top_ = await once(join(base, `tfjs-node-on-${name}`), (folder) => {
    console.log(`test:tfjs: compiling tfjs-node's binding against ${name}`);
    const target = join(folder, 'node_modules', '@tensorflow', 'tfjs-node');
    cpSync(join(npm, 'node_modules', '@tensorflow', 'tfjs-node'), target, { recursive: true });
    const napi = join(top, 'node_modules', 'node-api-headers', 'include');
    const lib = join(target, 'lib', 'napi-v8');
    mkdirSync(lib, { recursive: true });
    run(
      'compiling the binding',
      'c++',
      [
        ...['-shared', '-fPIC', '-std=c++17', '-O2', '-w', '-DNAPI_VERSION=8', '-D_GLIBCXX_USE_CXX11_ABI=1'],
        ...['-I', napi, '-I', join(tensorflow, 'include'), '-I', dirname(target)],
        ...['binding/tfjs_backend.cc', 'binding/tfjs_binding.cc', '-o', join(lib, 'tfjs_binding.node')],
        ...[
          '-L',
          join(tensorflow, 'lib'),
          '-ltensorflow',
          '-ltensorflow_framework',
          `-Wl,-rpath,${join(tensorflow, 'lib')}`,
        ],
      ],
      { cwd: target },
    );
    symlinkSync(tensorflow, join(target, 'deps'));
    // What the binding was not copied with is found one folder up.
    for (const entry of readdirSync(join(npm, 'node_modules', '@tensorflow'))) {
      if (entry !== 'tfjs-node')
        symlinkSync(
          join(npm, 'node_modules', '@tensorflow', entry),
          join(folder, 'node_modules', '@tensorflow', entry),
        );
    }
    for (const entry of readdirSync(join(npm, 'node_modules'))) {
      if (!entry.startsWith('.') && entry !== '@tensorflow')
        symlinkSync(join(npm, 'node_modules', entry), join(folder, 'node_modules', entry));
    }
  });
  return join(top_, 'node_modules', '@tensorflow', 'tfjs-node');
}

function test(name, path, args) {
  console.log(`test:tfjs: tfjs-node ${TFJS_NODE} on ${name}`);
  const jest = [
    join('node_modules', 'jest', 'bin', 'jest.js'),
    '--selectProjects',
    'tfjs-node',
    '--runInBand',
    ...args,
  ];
  const env = { ...process.env, FASTSAFETENSORS_TFJS_NODE: path, TF_CPP_MIN_LOG_LEVEL: '2' };
  return spawnSync(process.execPath, jest, { cwd: top, stdio: 'inherit', env }).status === 0;
}

if (process.platform !== 'linux' || process.arch !== 'x64') {
  console.error(`test:tfjs needs Linux x64, this is ${process.platform} ${process.arch}`);
  process.exit(1);
}
mkdirSync(base, { recursive: true });
const args = process.argv.slice(2);
const at = args.indexOf('--tensorflow');
const only = at < 0 ? undefined : args.splice(at, 2)[1];
let passed = true;
if (only !== '2')
  passed = test('TensorFlow 1.15', await tfjsNode('tensorflow-1.15', await tensorflow1()), args) && passed;
if (only !== '1') {
  if (only === undefined && spawnSync('python3', ['-m', 'pip', '--version']).status !== 0) {
    console.log('test:tfjs: TensorFlow 2 was not tested: there is no pip to get it with');
  } else {
    const two = `tensorflow-${TENSORFLOW_CPU}`;
    passed = test(`TensorFlow ${TENSORFLOW_CPU}`, await tfjsNode(two, await tensorflow2()), args) && passed;
  }
}
process.exit(passed ? 0 : 1);
