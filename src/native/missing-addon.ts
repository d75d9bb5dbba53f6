/** Says why no binary of the addon loads, what was looked for, and what to do. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, sep } from 'node:path';
import { FastSafetensorsError } from '../base/errors.js';

/** A binary that was found and did not load. */
export interface Refused {
  readonly path: string;
  readonly error: Error;
}

/** What `FASTSAFETENSORS_NATIVE` may name, where that is set. */
const VARIABLE = 'FASTSAFETENSORS_NATIVE';
const NAME = 'fastsafetensors-node';
const OLDEST_GLIBC = '2.28';

export type Libc = { readonly name: 'glibc' | 'musl' | 'libc'; readonly version?: string };

/** The C library of this process, without starting another one. */
export function libcOfProcess(): Libc {
  const report = process.report as (NodeJS.ProcessReport & { excludeNetwork?: boolean }) | undefined;
  if (!report) return { name: 'libc' };
  const before = report.excludeNetwork;
  report.excludeNetwork = true; // names of peers would be looked up
  try {
    const { header, sharedObjects = [] } = report.getReport() as unknown as {
      header: { glibcVersionRuntime?: string };
      sharedObjects?: string[];
    };
    if (header.glibcVersionRuntime) return { name: 'glibc', version: header.glibcVersionRuntime };
    return sharedObjects.some((path) => /(?:ld-musl-|libc\.musl-)/.test(path)) ? { name: 'musl' } : { name: 'libc' };
  } finally {
    report.excludeNetwork = before;
  }
}

/**
 * ADDON_MISSING on a platform that is supported. `folder`: of the package; `asked`: what FASTSAFETENSORS_NATIVE names;
 * `built`: where a clone has its own build; `refused`: absent where no binary was found.
 */
export function addonMissing(
  folder: string,
  { asked, built, refused, cause }: { asked?: string; built: string; refused?: Refused; cause: unknown },
): FastSafetensorsError {
  const libc = libcOfProcess();
  const system = `${process.platform} ${process.arch}, ${textOf(libc)}, Node.js ${process.version}`;
  const lines = [
    refused
      ? `the binary of ${NAME} does not load here (${system}): ${refused.path}: ${refused.error.message.trim()}`
      : `${NAME} has no binary for this system (${system})`,
  ];
  if (!refused) lines.push('looked for:', ...lookedFor(folder, built).map((place) => `  ${place}`));
  lines.push(...remedy(folder, libc, asked, refused));
  return new FastSafetensorsError('ADDON_MISSING', lines.join('\n'), { path: refused?.path, cause });
}

export function textOf({ name, version }: Libc): string {
  if (name === 'libc') return 'an unknown C library';
  return version === undefined ? name : `${name} ${version}`;
}

/** The places where src/native/addon.ts and node-gyp-build look, and what the folder of prebuilt binaries has. */
function lookedFor(folder: string, built: string): string[] {
  const target = `${process.platform}-${process.arch}`;
  const prebuilt = (top: string): string => {
    const there = binariesIn(join(top, 'prebuilds', target));
    const others = namesIn(join(top, 'prebuilds')).filter((name) => name !== target && name !== 'emulators');
    let found = 'is not there';
    if (there.length > 0) found = `has ${there.join(', ')}`;
    else if (others.length > 0) found = `is not there; there are ${others.join(', ')}`;
    return `${join(top, 'prebuilds', target)}/*.node (${found})`;
  };
  return [
    built,
    join(folder, 'build', 'Release', '*.node'),
    join(folder, 'build', 'Debug', '*.node'),
    prebuilt(process.env.FASTSAFETENSORS_NODE_PREBUILD || folder),
    prebuilt(dirname(process.execPath)),
  ];
}

/** What to do, in lines. */
function remedy(folder: string, libc: Libc, asked: string | undefined, refused: Refused | undefined): string[] {
  if (asked !== undefined) return [`${VARIABLE} names ${asked}: build that, or unset the variable`];
  const bundled = bundledIn(folder);
  if (bundled) {
    return [
      `the code of ${NAME} runs from ${bundled}, where its binary is not: a bundler has copied it; ` +
        `let ${NAME} be external there, so that it is loaded from node_modules`,
    ];
  }
  if (existsSync(join(folder, 'scripts', 'setup.mjs'))) return [`in this clone, run: npm run setup`];
  const build = `${addHeaders(packageManager(folder))} && npm run build-from-source --prefix ${quoted(folder)}`;
  const fromSource = `or build it from source (needs g++, make and python3): ${build}`;
  const text = refused?.error.message ?? '';
  const needed = /version `?(GLIBC_[\d.]+)/.exec(text)?.[1];
  if (needed) {
    return [
      `it needs ${needed.replace('GLIBC_', 'glibc ')} and this system has ${textOf(libc)}: use a newer one ` +
        `(glibc ${OLDEST_GLIBC} is in Debian 10, Ubuntu 18.10, RHEL 8 and later),`,
      fromSource,
    ];
  }
  if (/failed to map segment/.test(text)) {
    return [`${dirname(refused!.path)} may be mounted noexec: install ${NAME} where programs may run`];
  }
  const isMusl = libc.name === 'musl' && !existsSync('/etc/alpine-release') && process.env.LIBC !== 'musl';
  if (isMusl) return ['this system is musl without being Alpine: set LIBC=musl in the environment,', fromSource];
  return [`install it again: ${reinstall(folder)}`, fromSource];
}

/** The file or folder that this code runs from, where that is not its own package. */
function bundledIn(folder: string): string | undefined {
  try {
    const { name } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { name?: unknown };
    return name === NAME ? undefined : folder;
  } catch {
    return folder;
  }
}

export type PackageManager = 'npm' | 'pnpm' | 'Yarn' | 'Yarn PnP' | 'bun';

/**
 * What installed the package: by the layout that it leaves, else the nearest lock file, else by what runs this process.
 */
export function packageManager(folder: string): PackageManager {
  if (process.versions.pnp || /[/\\](?:\.yarn|__virtual__)[/\\]|\.zip[/\\]/.test(folder)) return 'Yarn PnP';
  if (folder.includes(`${sep}.pnpm${sep}`)) return 'pnpm';
  for (let at = folder; dirname(at) !== at; at = dirname(at)) {
    const has = (...names: string[]): boolean => names.some((name) => existsSync(join(at, name)));
    if (has('.pnp.cjs')) return 'Yarn PnP';
    if (has('node_modules/.modules.yaml', 'pnpm-lock.yaml')) return 'pnpm';
    if (has('node_modules/.yarn-state.yml', 'node_modules/.yarn-integrity', 'yarn.lock')) return 'Yarn';
    if (has('bun.lock', 'bun.lockb')) return 'bun';
    if (has('node_modules/.package-lock.json', 'package-lock.json', 'npm-shrinkwrap.json')) return 'npm';
  }
  const agent = /^(npm|pnpm|yarn|bun)\//.exec(process.env.npm_config_user_agent ?? '')?.[1] ?? 'npm';
  return agent === 'yarn' ? 'Yarn' : (agent as PackageManager);
}

/** The command for the C++ headers that the build includes; nobody else needs them, so they are no dependency. */
function addHeaders(manager: PackageManager): string {
  const headers = 'node-addon-api@8';
  const commands: Record<PackageManager, string> = {
    npm: `npm install --no-save ${headers}`,
    pnpm: `pnpm add --save-dev ${headers}`,
    Yarn: `yarn add --dev ${headers}`,
    'Yarn PnP': `yarn config set nodeLinker node-modules && yarn add --dev ${headers}`,
    bun: `bun add --dev ${headers}`,
  };
  return commands[manager];
}

/** The command that brings back files of an installed package; installing alone, even with --force, may not. */
function reinstall(folder: string): string {
  const npx = /^(.*[/\\]_npx[/\\][^/\\]+)[/\\]/.exec(folder)?.[1];
  if (npx !== undefined) return `rm -rf ${quoted(npx)}, and run npx again`;
  if (folder.endsWith(join(sep, 'lib', 'node_modules', NAME))) return `npm install --global ${NAME}`;
  const modules = `${sep}node_modules${sep}`;
  const top = folder.includes(modules) ? folder.slice(0, folder.indexOf(modules) + modules.length - 1) : folder;
  const commands: Record<PackageManager, string> = {
    npm: `rm -rf ${quoted(folder)} && npm install`,
    pnpm: 'pnpm install --force',
    Yarn: `rm -rf ${quoted(top)} && yarn install`,
    'Yarn PnP': 'yarn install --check-cache',
    bun: 'bun install --force',
  };
  return commands[packageManager(folder)];
}

function binariesIn(folder: string): string[] {
  return namesIn(folder).filter((name) => name.endsWith('.node'));
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return [];
  }
}

/** As a shell takes it. */
function quoted(path: string): string {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}
