import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { testFolder } from '../support/tensor-files.js';

// The package as its users get it: packed, installed into a project of its own, and used through both kinds of modules;
// with its prebuilt binary, then with one that was built there.

const folder = testFolder();
const project = join(folder, 'project');
const installed = join(project, 'node_modules', 'fastsafetensors-node');
const top = resolve(__dirname, '../..');

function run(command: string, args: readonly string[], cwd: string): string {
  const env: NodeJS.ProcessEnv = { ...process.env, FASTSAFETENSORS_PACK: 'host' };
  delete env.FASTSAFETENSORS_NATIVE;
  return execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], env });
}

const options = ['--no-audit', '--no-fund'];

const cpu = process.arch === 'x64' ? 'arm64' : 'x64';
/** A binary of another machine, as `npm run prebuild` leaves it. */
const foreign = join(top, 'prebuilds', `linux-${cpu}`, 'fastsafetensors-node.glibc.node');
const others = { built: existsSync(foreign), left: false };

beforeAll(() => {
  if (!others.built) {
    mkdirSync(dirname(foreign), { recursive: true });
    writeFileSync(foreign, '');
  }
  const [packed] = JSON.parse(run('npm', ['pack', '--json', '--pack-destination', folder], top));
  others.left = existsSync(foreign);
  if (!others.built) rmSync(foreign, { force: true });
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{"private":true}');
  run('npm', ['install', ...options, join(folder, packed.filename)], project);
  const body = `
    (async () => {
      await saveFile([{ name: 'w', dtype: 'U8', shape: [3], data: Uint8Array.of(1, 2, 3) }], 'w.safetensors');
      const loader = new ParallelLoader({ files: 'w.safetensors' });
      for await (const [name, tensor] of loader.iterateWeights()) console.log(name, [...tensor.data].join());
      await loader.close();
      try { emulators.cuda.env(); } catch (error) { console.log(error.code); }
    })();`;
  writeFileSync(
    join(project, 'load.cjs'),
    `const { ParallelLoader, saveFile } = require('fastsafetensors-node');
     const { emulators } = require('fastsafetensors-node/testing');${body}`,
  );
  writeFileSync(
    join(project, 'load.mjs'),
    `import { ParallelLoader, saveFile } from 'fastsafetensors-node';
     import { emulators } from 'fastsafetensors-node/testing';${body}`,
  );
});

function expectLoads(): void {
  for (const script of ['load.cjs', 'load.mjs'])
    expect(run(process.execPath, [script], project)).toBe('w 1,2,3\nCOPIER_UNAVAILABLE\n');
}

test('packing for this machine leaves what was built for others', () => {
  expect(others.left).toBe(true);
});

test('it is installed without a build and loads a file it wrote, as CommonJS and as ES modules', () => {
  expectLoads();
  for (const name of ['fastsafetensors-node', 'fastsafetensors'])
    expect(run('npx', ['--no', name, 'inspect', 'w.safetensors'], project)).toContain('w');
  expect(existsSync(join(installed, 'build'))).toBe(false);
  const { packages } = JSON.parse(readFileSync(join(project, 'package-lock.json'), 'utf8'));
  expect(packages['node_modules/fastsafetensors-node'].hasInstallScript).toBeUndefined();
  expect(Object.keys(packages).length - 1).toBeLessThanOrEqual(6);
});

test('build-from-source says what it needs, builds offline, and what it built is used', () => {
  const build = () => run('npm', ['run', 'build-from-source', '--offline', '--prefix', installed], project);
  expect(build).toThrow(/npm install --no-save node-addon-api@8/);
  run('npm', ['install', '--no-save', ...options, 'node-addon-api@8'], project);
  build();
  expect(existsSync(join(installed, 'build', 'Release', 'fastsafetensors.node'))).toBe(true);
  rmSync(join(installed, 'prebuilds'), { recursive: true });
  expectLoads();
});
