// What the package is tried with: package managers, versions of Node, bundlers, test runners. Each is pinned, comes
// from npm without install scripts (binaries are packages there), has a folder in build/package/tools, and is installed
// once.
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from './run.mjs';

const { arch } = process;

/**
 * By name: the packages to install, and the file to start, relative to the tool's node_modules. `seldom`: large, and
 * used by few cells.
 */
const TOOLS = {
  'node 20': { packages: [`node-linux-${arch}@20.20.2`], file: `node-linux-${arch}/bin/node` },
  'node 22': { packages: [`node-linux-${arch}@22.23.3`], file: `node-linux-${arch}/bin/node` },
  'node 24': { packages: [`node-linux-${arch}@24.21.0`], file: `node-linux-${arch}/bin/node` },
  deno: { packages: ['deno@2.9.6'], file: `@deno/linux-${arch}-glibc/deno`, seldom: true },
  bun: { packages: ['bun@1.4.5'], file: `@oven/bun-linux-${arch === 'x64' ? 'x64' : 'aarch64'}/bin/bun`, seldom: true },
  'npm 11': { packages: ['npm@11.21.2'], file: 'npm/bin/npm-cli.js' },
  'npm 12': { packages: ['npm@12.2.2'], file: 'npm/bin/npm-cli.js' },
  pnpm: { packages: ['pnpm@12.21.0'], file: 'pnpm/bin/pnpm.mjs' },
  yarn: { packages: ['@yarnpkg/cli-dist@4.18.1'], file: '@yarnpkg/cli-dist/bin/yarn.js' },
  vitest: { packages: ['vitest@5.1.2'], file: 'vitest/vitest.mjs' },
  esbuild: { packages: ['esbuild@0.28.2'], file: 'esbuild/bin/esbuild' },
  webpack: { packages: ['webpack@5.113.0'], file: 'webpack/lib/index.js' },
  rollup: {
    packages: [
      'rollup@4.68.8',
      '@rollup/plugin-node-resolve@16.0.3',
      '@rollup/plugin-commonjs@29.0.3',
      '@rollup/plugin-json@6.1.0',
    ],
    file: 'rollup/dist/bin/rollup',
  },
  nft: { packages: ['@vercel/nft@1.11.5'], file: '@vercel/nft/out/cli.js' },
  attw: { packages: ['@arethetypeswrong/cli@0.18.5'], file: '@arethetypeswrong/cli/dist/index.js' },
  // 475 MB: sharp, and ONNX Runtime for all platforms and for browsers.
  transformers: {
    packages: ['@huggingface/transformers@4.3.2'],
    file: '@huggingface/transformers/dist/transformers.node.cjs',
    seldom: true,
  },
};

/** The version that is pinned. */
export const versionOf = (name) => TOOLS[name].packages[0].replace(/.*@/, '');

/** Where a tool's packages are. */
export function toolModules(top, name) {
  return join(top, 'build', 'package', 'tools', `${name.replace(' ', '-')}-${versionOf(name)}`, 'node_modules');
}

const installing = new Map();

/** The file to start, of a tool that is installed by then. */
export function tool(top, name) {
  if (!installing.has(name)) installing.set(name, install(top, name));
  return installing.get(name);
}

/** Installs what most cells use, one after the other: what fails is said by the cell that wants it. */
export async function installTools(top) {
  for (const [name, { seldom }] of Object.entries(TOOLS)) if (!seldom) await tool(top, name).catch(() => {});
}

async function install(top, name) {
  const modules = toolModules(top, name);
  const file = join(modules, TOOLS[name].file);
  if (existsSync(file)) return file;
  const folder = join(modules, '..');
  const part = `${folder}.part`;
  for (const old of [folder, part]) rmSync(old, { recursive: true, force: true });
  mkdirSync(part, { recursive: true });
  writeFileSync(join(part, 'package.json'), '{"private":true}');
  const args = ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', ...TOOLS[name].packages];
  await run('npm', args, { cwd: part });
  renameSync(part, folder);
  if (!existsSync(file)) throw new Error(`${name}: ${TOOLS[name].packages.join(' ')} has no ${TOOLS[name].file}`);
  return file;
}
