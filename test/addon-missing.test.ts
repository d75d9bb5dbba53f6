import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { DoctorReport } from '../src/doctor/doctor.js';
import { addonMissing, libcOfProcess, packageManager } from '../src/native/missing-addon.js';
import { runChild } from './support/child.js';
import { installWithoutBinary } from './support/installed.js';
import { testFolder } from './support/tensor-files.js';

// A package whose binary is missing, or does not load, says so where it is first needed: what was looked for, and the
// command that mends it. Whatever needs no binary works.

delete process.env.FASTSAFETENSORS_NATIVE; // it may name the binary that all tests run on

const folder = testFolder();
const target = `${process.platform}-${process.arch}`;
const { glibcVersionRuntime } = (process.report.getReport() as unknown as { header: Record<string, string> }).header;
let count = 0;
const install = (modules?: string) => installWithoutBinary(join(folder, `project ${++count}`), modules);

/** What the child script says of a package. */
async function use(installed: string, platform = '') {
  const { code, stdout, stderr } = await runChild('addon-missing.child.cjs', [installed, platform]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout) as { results: Record<string, string>; message: string; written: string };
}

function cli(installed: string, args: string[], NODE_OPTIONS = '') {
  const main = join(installed, 'dist/src/cli/main.js');
  return spawnSync(process.execPath, [main, ...args], { encoding: 'utf8', env: { ...process.env, NODE_OPTIONS } });
}

test('without a binary, import and saveFile work, and what needs it is ADDON_MISSING', async () => {
  const installed = install();
  const { results, message, written } = await use(installed);
  expect(results).toEqual({
    saveFile: 'works',
    metadata: 'ADDON_MISSING',
    loader: 'ADDON_MISSING',
    device: 'works',
    copiers: 'works',
    mock: 'works',
    loadConfig: 'works',
    metrics: 'ADDON_MISSING',
    availability: 'works',
  });
  expect(written).toContain('"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}');
  const lines = message.split('\n');
  expect(lines[0]).toBe(
    `fastsafetensors-node has no binary for this system (${process.platform} ${process.arch}, ` +
      `glibc ${glibcVersionRuntime}, Node.js ${process.version})`,
  );
  for (const place of [
    'build/cmake/Release/fastsafetensors.node',
    'build/Release/*.node',
    `prebuilds/${target}/*.node (is not there)`,
  ])
    expect(lines).toContain(`  ${installed}/${place}`);
  expect(message).toContain(`install it again: rm -rf '${installed}' && npm install`);
  expect(message).toContain(`npm run build-from-source --prefix '${installed}'`);
});

test('binaries of other systems are named', async () => {
  const installed = install();
  for (const name of [`${target}/fastsafetensors-node.musl.node`, 'aix-ppc64/a.node']) {
    mkdirSync(dirname(join(installed, 'prebuilds', name)), { recursive: true });
    writeFileSync(join(installed, 'prebuilds', name), '');
  }
  const { message } = await use(installed);
  expect(message).toContain(`prebuilds/${target}/*.node (has fastsafetensors-node.musl.node)`);
});

test('a binary that does not load is named, with what the system says', async () => {
  const installed = install();
  const binary = join(installed, 'prebuilds', target, 'fastsafetensors-node.glibc.node');
  mkdirSync(dirname(binary), { recursive: true });
  writeFileSync(binary, 'text');
  const { results, message } = await use(installed);
  expect(results).toMatchObject({ saveFile: 'works', metadata: 'ADDON_MISSING', metrics: 'ADDON_MISSING' });
  expect(message).toMatch(/does not load here \(linux \w+, glibc [\d.]+, Node.js v[\d.]+\): .*file too short/);
  expect(message).toContain(`${binary}: `);
});

test.each(['darwin', 'win32'])('on %s, what needs a binary is PLATFORM_UNSUPPORTED and the rest works', async (os) => {
  const { results, message, written } = await use(install(), os);
  expect(results).toMatchObject({
    saveFile: 'works',
    metadata: 'PLATFORM_UNSUPPORTED',
    loader: 'PLATFORM_UNSUPPORTED',
    device: 'works',
    copiers: 'works',
    mock: 'works',
    loadConfig: 'works',
    metrics: 'PLATFORM_UNSUPPORTED',
    availability: 'works',
  });
  expect(message).toContain(`this is ${os} ${process.arch}`);
  expect(written).toContain('"w":');
});

test('so says the command line there, and doctor what to do', () => {
  const installed = install();
  const preload = join(installed, 'darwin.cjs');
  writeFileSync(preload, "Object.defineProperty(process, 'platform', { value: 'darwin' });");
  const options = `--require=${JSON.stringify(preload)}`;
  const { status, stderr } = cli(installed, ['inspect', join(installed, 'package.json')], options);
  expect(status).toBe(1);
  expect(stderr).toMatch(/^error: PLATFORM_UNSUPPORTED: .*this is darwin/);
  const { checks } = JSON.parse(cli(installed, ['doctor', '--json'], options).stdout) as DoctorReport;
  expect(checks[0]).toMatchObject({
    name: 'addon',
    state: 'broken',
    detail: expect.stringContaining('this is darwin'),
  });
  expect(checks[0]!.remedy).toContain('in a container');
});

test('the command line prints its lines as lines, and as JSON', () => {
  const installed = install();
  for (const command of ['inspect', 'verify', 'load']) {
    const { status, stdout, stderr } = cli(installed, [command, join(installed, 'package.json')]);
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(/^error: ADDON_MISSING: fastsafetensors-node has no binary for this system \(.*\)\n/);
    expect(stderr).toMatch(/\n {2}install it again: .*\n {2}or build it from source .*\n$/);
    expect(stderr).not.toContain('\\u000a');
    const json = cli(installed, [command, '--json', 'as/a-hub-has-it']);
    expect(JSON.parse(json.stderr).error).toMatchObject({ code: 'ADDON_MISSING' });
  }
});

describe('the remedy', () => {
  const missing = (message: string, installed = install()) =>
    addonMissing(installed, {
      built: 'built.node',
      refused: { path: '/somewhere/addon.node', error: new Error(message) },
      cause: undefined,
    });

  test('of a system that is too old names both versions, and is no new installation', () => {
    const { message, path } = missing(
      "/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.99' not found (required by /somewhere/addon.node)",
    );
    expect(path).toBe('/somewhere/addon.node');
    expect(message).toContain(`it needs glibc 2.99 and this system has glibc ${glibcVersionRuntime}`);
    expect(message).toContain('Debian 10');
    expect(message).toContain('build-from-source');
    expect(message).not.toContain('install it again');
  });

  test('of a folder where nothing may run', () => {
    expect(missing('/somewhere/addon.node: failed to map segment from shared object').message).toContain(
      '/somewhere may be mounted noexec',
    );
  });

  test('of code that a bundler has copied is to leave the package out', () => {
    const bundle = join(folder, 'bundled');
    mkdirSync(bundle);
    writeFileSync(join(bundle, 'package.json'), '{"name":"an-application"}');
    expect(missing('Cannot find module', bundle).message).toContain('let fastsafetensors-node be external there');
  });

  test('of a clone is its setup', () => {
    expect(missing('file too short', join(__dirname, '..')).message).toMatch(/in this clone, run: npm run setup$/);
  });

  test.each([
    ['npm', 'node_modules', 'node_modules/.package-lock.json', /rm -rf .*fastsafetensors-node' && npm install$/m],
    ['npm', '_npx/12ab/node_modules', undefined, /rm -rf .*_npx\/12ab', and run npx again$/m],
    ['npm', 'lib/node_modules', undefined, /npm install --global fastsafetensors-node$/m],
    ['pnpm', 'node_modules/.pnpm/fastsafetensors-node@1/node_modules', undefined, /pnpm install --force$/m],
    ['pnpm', 'node_modules', 'node_modules/.modules.yaml', /pnpm install --force$/m],
    ['Yarn', 'node_modules', 'node_modules/.yarn-state.yml', /rm -rf .*node_modules' && yarn install$/m],
    ['Yarn', 'node_modules', 'yarn.lock', /yarn install$/m],
    ['Yarn PnP', '.yarn/unplugged/fst/node_modules', '.pnp.cjs', /yarn install --check-cache$/m],
    ['bun', 'node_modules', 'bun.lock', /bun install --force$/m],
  ])('is for %s where its layout is %s with %s', (manager, modules, file, command) => {
    const installed = install(modules);
    if (file !== undefined) writeFileSync(join(folder, `project ${count}`, file), '');
    expect(packageManager(installed)).toBe(manager);
    expect(missing('file too short', installed).message).toMatch(command);
  });

  test.each([
    ['pnpm/10.0.0 npm/? node/v20.0.0 linux x64', 'pnpm'],
    ['yarn/4.0.0 npm/? node/v20.0.0 linux x64', 'Yarn'],
    ['', 'npm'],
  ])('is for what runs the process where the layout says nothing: %p', (agent, manager) => {
    const before = process.env.npm_config_user_agent;
    process.env.npm_config_user_agent = agent;
    try {
      expect(packageManager(install())).toBe(manager);
    } finally {
      if (before === undefined) delete process.env.npm_config_user_agent;
      else process.env.npm_config_user_agent = before;
    }
  });
});

test('the C library is known without another process', () => {
  expect(libcOfProcess()).toEqual({ name: 'glibc', version: glibcVersionRuntime });
});
