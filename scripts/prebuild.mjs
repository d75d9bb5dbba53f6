// Builds the binaries that the package ships, on any one machine, where node-gyp-build looks for them:
// prebuilds/linux-<arch>/fastsafetensors-node.<libc>.node; and with --emulators those of the package of emulators.
// Compiles what changed.
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
import { dirname, join } from 'node:path';
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

/** The libraries of the package of emulators, as CMake names target and file. */
const emulators = {
  emulated_cuda: 'libcuda.so.1',
  emulated_cufile: 'libcufile.so.0',
  hf3fs_emulator: 'libhf3fs_api_shared.so',
};

/** The target that this machine runs. */
export function hostTarget() {
  const libc = process.report.getReport().header.glibcVersionRuntime ? 'glibc' : 'musl';
  return `${process.platform}-${process.arch}.${libc}`;
}

/** Where the addon of a target lies in a package or a clone. */
export function prebuiltPath(target) {
  const [platform, libc] = target.split('.');
  return join('prebuilds', platform, `fastsafetensors-node.${libc}.node`);
}

function run(what, command, args) {
  const env = { ...process.env, ZIG_GLOBAL_CACHE_DIR: zigCache };
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

function build(target, withEmulators) {
  const started = Date.now();
  const { triple, processor } = targets[target];
  const folder = join(top, 'build', 'prebuild', target);
  const args = [
    ...['-S', '.', '-B', folder, '-G', has('ninja') ? 'Ninja' : 'Unix Makefiles'],
    `-DCMAKE_CXX_COMPILER=${zig()};c++;-target;${triple}`,
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
  const wanted = ['fastsafetensors', ...(withEmulators ? Object.keys(emulators) : [])];
  const parallel = ['--parallel', String(availableParallelism())];
  run(`building ${target}`, 'cmake', ['--build', folder, ...parallel, '--target', ...wanted]);

  const addon = join(top, prebuiltPath(target));
  install(join(folder, 'Release', 'fastsafetensors.node'), addon);
  if (withEmulators) {
    for (const file of Object.values(emulators))
      install(join(folder, 'emulators', file), join(top, 'packages', 'emulators', 'lib', target, file));
  }
  const seconds = ((Date.now() - started) / 1000).toFixed(0);
  // Not on stdout: npm takes that for a part of its own output, as of `npm pack --json`.
  console.error(`prebuild: ${prebuiltPath(target)}, ${(statSync(addon).size / 1e6).toFixed(2)} MB, in ${seconds} s`);
}

/** Builds the given targets; of those that are not given, what was built before stays. */
export function prebuild(names, withEmulators = false) {
  const unknown = names.find((name) => !(name in targets));
  if (unknown) throw new Error(`no target ${unknown}; there are ${Object.keys(targets).join(', ')}`);
  if (!has('cmake')) throw new Error('cmake is needed; install it (apt-get install cmake ninja-build)');
  if (!existsSync(join(top, 'node_modules', 'node-addon-api'))) throw new Error('run `npm run setup` first');
  for (const name of names) build(name, withEmulators);
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
    prebuild(values.only ?? (values.host ? [hostTarget()] : Object.keys(targets)), values.emulators);
  } catch (error) {
    console.error(`prebuild: ${error.message}`);
    process.exit(1);
  }
}
