// Builds the binaries that the package ships, on any one machine, where node-gyp-build looks for them:
// prebuilds/linux-<arch>/fastsafetensors-node.<libc>.node; with --emulators the libraries of packages/emulators in
// their place. Compiles what changed.
//
//   node scripts/prebuild.mjs [--host] [--only linux-x64.musl]… [--emulators]
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { has, top } from './cmake.mjs';
import { installDependencies } from './dist.mjs';
import { zig, zigCache } from './zig.mjs';

/** What zig calls each target. glibc 2.28 is that of Debian 10 and RHEL 8, and what Node's own binaries ask for. */
export const targets = {
  'linux-x64.glibc': { triple: 'x86_64-linux-gnu.2.28', processor: 'x86_64' },
  'linux-arm64.glibc': { triple: 'aarch64-linux-gnu.2.28', processor: 'aarch64' },
  'linux-x64.musl': { triple: 'x86_64-linux-musl', processor: 'x86_64' },
  'linux-arm64.musl': { triple: 'aarch64-linux-musl', processor: 'aarch64' },
};

/** What is built for a target, as CMake names it, and where in its folder of the build. */
const built = {
  addon: { fastsafetensors: 'Release/fastsafetensors.node' },
  emulators: {
    emulated_cuda: 'emulators/libcuda.so.1',
    emulated_cufile: 'emulators/libcufile.so.0',
    emulated_nccl: 'emulators/libnccl.so.2',
    hf3fs_emulator: 'emulators/libhf3fs_api_shared.so',
  },
};

/** The target that this machine runs. */
export function hostTarget() {
  const libc = process.report.getReport().header.glibcVersionRuntime ? 'glibc' : 'musl';
  return `${process.platform}-${process.arch}.${libc}`;
}

/** Where they lie in a clone, from its top: the addon as in the package, emulators as in theirs. */
export function prebuiltPaths(target, what) {
  const [platform, libc] = target.split('.');
  if (what === 'addon') return [join('prebuilds', platform, `fastsafetensors-node.${libc}.node`)];
  return Object.values(built.emulators).map((path) => join('packages', 'emulators', 'lib', target, basename(path)));
}

function run(what, command, args) {
  const env = { ...process.env, ZIG_GLOBAL_CACHE_DIR: zigCache() };
  const result = spawnSync(command, args, { cwd: top, encoding: 'utf8', maxBuffer: 1 << 28, env });
  if (result.status === 0) return;
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
  const reason = result.error ? result.error.message : `exit code ${result.status}`;
  throw new Error(`${what} failed: ${reason} (${command} ${args.join(' ')})`);
}

/** A whole file at once, or none: node may have the old one mapped. */
function install(from, to) {
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, `${to}.new`);
  renameSync(`${to}.new`, to);
}

function build(target, what) {
  const started = Date.now();
  const { triple, processor } = targets[target];
  const folder = join(top, 'build', 'prebuild', target);
  const args = [
    ...['-S', '.', '-B', folder, '-G', has('ninja') ? 'Ninja' : 'Unix Makefiles'],
    `-DCMAKE_CXX_COMPILER=${zig()};c++`,
    // Nothing is linked to find out what compiler it is: zig would build a libc++ for that alone, in minutes.
    `-DCMAKE_CXX_COMPILER_TARGET=${triple}`,
    '-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY',
    `-DCMAKE_SYSTEM_NAME=Linux`,
    `-DCMAKE_SYSTEM_PROCESSOR=${processor}`,
    '-DCMAKE_BUILD_TYPE=Release',
    '-DFST_PREBUILT=ON',
  ];
  const stamp = join(folder, 'configured');
  if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== args.join('\n')) {
    rmSync(folder, { recursive: true, force: true });
    run(`configuring ${target}`, 'cmake', args);
    writeFileSync(stamp, args.join('\n'));
  }
  const parallel = ['--parallel', String(availableParallelism())];
  run(`building ${target}`, 'cmake', ['--build', folder, ...parallel, '--target', ...Object.keys(built[what])]);
  const seconds = ((Date.now() - started) / 1000).toFixed(0);
  const paths = prebuiltPaths(target, what);
  Object.values(built[what]).forEach((from, i) => {
    const to = join(top, paths[i]);
    install(join(folder, from), to);
    // Not on stdout: npm takes that for a part of its own output, as of `npm pack --json`.
    console.error(`prebuild: ${paths[i]}, ${(statSync(to).size / 1e6).toFixed(2)} MB, in ${seconds} s`);
  });
}

/** Builds `what`, 'addon' or 'emulators', for these targets; of others, what was built before stays. */
export function prebuild(names, what = 'addon') {
  const unknown = names.find((name) => !(name in targets));
  if (unknown) throw new Error(`no target ${unknown}; there are ${Object.keys(targets).join(', ')}`);
  if (!has('cmake')) throw new Error('cmake is needed; install it (apt-get install cmake ninja-build)');
  if (!existsSync(join(top, 'node_modules', 'node-addon-api'))) throw new Error('run `npm run setup` first');
  for (const name of names) build(name, what);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { values } = parseArgs({
    options: {
      host: { type: 'boolean' },
      only: { type: 'string', multiple: true },
      emulators: { type: 'boolean' },
    },
  });
  try {
    installDependencies();
    const names = values.only ?? (values.host ? [hostTarget()] : Object.keys(targets));
    prebuild(names, values.emulators ? 'emulators' : 'addon');
  } catch (error) {
    console.error(`prebuild: ${error.message}`);
    process.exit(1);
  }
}
