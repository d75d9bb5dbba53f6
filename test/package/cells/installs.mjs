// The package installed by every package manager, without install scripts or a compiler, and then used.
import { cpSync, existsSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { targets } from '../../../scripts/prebuild.mjs';
import { versionOf } from '../tools.mjs';

const USE = fileURLToPath(new URL('../use', import.meta.url));

/** Copies what uses the package into a project. */
export function addUse(folder) {
  cpSync(USE, folder, { recursive: true });
}

/** What the scripts printed, in one line. */
export const said = ({ stdout }) => stdout.trim().split('\n').join('; ');

async function used(stage, node, cwd, flags = [], esmFlags = []) {
  addUse(cwd);
  const cjs = await stage.node(node, [...flags, 'use.cjs'], { cwd });
  const esm = await stage.node(node, [...flags, ...esmFlags, 'use.mjs'], { cwd });
  return `${said(cjs)}; ${said(esm)}`;
}

const byNpm = (npm, node, args = []) => ({
  name: `install ${npm}${args.map((arg) => ` ${arg}`).join('')}`,
  async run(stage) {
    const cwd = stage.project(this.name);
    const { stdout, stderr } = await stage.manager(npm, node, ['install', '--no-audit', ...args, stage.tarball], {
      cwd,
    });
    expectNoWarning(stdout + stderr);
    return `npm ${versionOf(npm)}, ${node}: ${await used(stage, node, cwd)}`;
  },
});

/** Nothing about scripts that were not run, nor deprecations or peers. */
function expectNoWarning(text) {
  const found = text.split('\n').filter((line) => /script|warn|deprecat|peer/i.test(line));
  if (found.length > 0) throw new Error(`installing was to warn of nothing:\n${found.join('\n')}`);
}

/** The paths of all files in a folder. */
function filesIn(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, path, name }) => join(parentPath ?? path, name));
}

/** Bytes of all files in a folder. */
const sizeOf = (folder) => filesIn(folder).reduce((sum, path) => sum + statSync(path).size, 0);

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/** The first snippet of README.md as it stands there, but for where its model is. */
function firstSnippet(readme, models) {
  const [, text] = /^```ts\n([\s\S]*?)^```/m.exec(readme);
  const options = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext };
  return ts.transpileModule(text.replaceAll("'/models/", `'${models}/`), { compilerOptions: options }).outputText;
}

/** Installing may take so long, or as long as sharp takes in the same run where that is more. */
const MOST_BYTES = 6e6;
const MOST_SECONDS = 10;

/** Nothing may compete with it: its times are compared. */
const fresh = {
  name: 'install fresh',
  alone: true,
  async run(stage) {
    const seconds = { ours: [], sharp: [] };
    let cwd;
    for (let round = 0; round < 3; ++round) {
      for (const [name, what] of [
        ['ours', stage.tarball],
        ['sharp', 'sharp@0.35.5'],
      ]) {
        const project = stage.project(`fresh ${name} ${round}`);
        const installed = await stage.manager('npm 12', 'node 24', ['install', what], { cwd: project });
        seconds[name].push(installed.seconds);
        if (name !== 'ours') continue;
        expectNoWarning(installed.stdout + installed.stderr);
        cwd = project;
      }
    }
    const modules = join(cwd, 'node_modules');
    const { packages } = JSON.parse(readFileSync(join(modules, '.package-lock.json'), 'utf8'));
    const dependencies = Object.keys(packages).filter((path) => path !== 'node_modules/fastsafetensors-node');
    // A release has a binary for each of four systems, this package may have that of this machine alone.
    const here = sizeOf(modules);
    const binaries = filesIn(join(modules, 'fastsafetensors-node', 'prebuilds')).map((path) => statSync(path).size);
    const bytes = here + (Object.keys(targets).length - binaries.length) * Math.max(...binaries);

    const models = join(cwd, 'models');
    addUse(cwd);
    const load = `
      import { saveFile } from 'fastsafetensors-node';
      import { mkdirSync } from 'node:fs';
      mkdirSync('models/llama', { recursive: true });
      await saveFile({ w: { shape: [2], data: Float32Array.of(1, 2) } }, 'models/llama/model.safetensors');`;
    writeFileSync(join(cwd, 'prepare.mjs'), load);
    await stage.node('node 24', ['prepare.mjs'], { cwd });
    const ort = 'onnxruntime-node'; // the user's own
    symlinkSync(join(stage.top, 'node_modules', ort), join(modules, ort));
    const snippet = `${firstSnippet(stage.read('README.md'), models)}\nconsole.log(Object.keys(feeds).join());`;
    writeFileSync(join(cwd, 'readme.mjs'), snippet);
    const { stdout } = await stage.node('node 24', ['readme.mjs'], { cwd });
    if (stdout !== 'w\n') throw new Error(`README's first example was to load w, and printed ${stdout}`);
    const npx = ['exec', '--no', '--', 'fastsafetensors-node', 'inspect', 'models/llama/model.safetensors'];
    const { stdout: inspected } = await stage.manager('npm 12', 'node 24', npx, { cwd });
    if (!/\bw\b/.test(inspected)) throw new Error(`inspect was to list w, and printed ${inspected}`);

    const [ours, sharp] = [median(seconds.ours), median(seconds.sharp)];
    const said =
      `npm ${versionOf('npm 12')} without a compiler: ${ours.toFixed(1)} s (sharp ${sharp.toFixed(1)} s, medians of ` +
      `3), ${(here / 1e6).toFixed(2)} MB (with four binaries of this size ${(bytes / 1e6).toFixed(3)} MB), ` +
      `${dependencies.length} dependencies; README's first example; npx fastsafetensors-node inspect`;
    const most = Math.max(MOST_SECONDS, sharp);
    if (ours > most) throw new Error(`expected at most ${most.toFixed(1)} s: ${said}`);
    if (bytes > MOST_BYTES) throw new Error(`expected at most ${MOST_BYTES / 1e6} MB: ${said}`);
    if (dependencies.length > 6)
      throw new Error(`expected at most 6 dependencies: ${said}: ${dependencies.join(', ')}`);
    return said;
  },
};

const peers = {
  name: 'install with peers',
  long: true,
  async run(stage) {
    const lock = JSON.parse(stage.read('package-lock.json')).packages;
    const wanted = ['onnxruntime-node', '@tensorflow/tfjs'].map(
      (name) => `${name}@${lock[`node_modules/${name}`].version}`,
    );
    const cwd = stage.project(this.name);
    const args = ['install', '--no-audit', '--ignore-scripts', '--prefer-offline', stage.tarball, ...wanted];
    await stage.manager('npm 11', 'node 22', args, { cwd });
    return `npm ${versionOf('npm 11')} with ${wanted.join(', ')}: ${await used(stage, 'node 22', cwd)}`;
  },
};

const pnpm = {
  name: 'install pnpm',
  async run(stage) {
    const cwd = stage.project(this.name);
    const { stdout, stderr } = await stage.manager('pnpm', 'node 24', ['add', stage.tarball], { cwd });
    expectNoWarning(stdout + stderr);
    return `pnpm ${versionOf('pnpm')}: ${await used(stage, 'node 24', cwd)}`;
  },
};

const yarn = (linker) => ({
  name: `install yarn ${linker}`,
  async run(stage) {
    const cwd = stage.project(this.name);
    writeFileSync(join(cwd, '.yarnrc.yml'), `nodeLinker: ${linker}\nenableScripts: false\npnpEnableEsmLoader: true\n`);
    writeFileSync(join(cwd, 'yarn.lock'), ''); // a project by itself, whatever lies above it
    await stage.manager('yarn', 'node 24', ['add', `fastsafetensors-node@file:${stage.tarball}`], { cwd });
    const pnp = existsSync(join(cwd, '.pnp.cjs'));
    if (pnp !== (linker === 'pnp'))
      throw new Error(`${linker} was asked for, and .pnp.cjs ${pnp ? 'is' : 'is not'} there`);
    const flags = pnp
      ? [
          ['--require', './.pnp.cjs'],
          ['--experimental-loader', './.pnp.loader.mjs'],
        ]
      : [];
    const uses = await used(stage, 'node 24', cwd, ...flags);
    // Yarn replaces node:fs under Plug'n'Play: the commands read and write by it.
    cpSync(join(stage.clone, 'examples', 'ort-session', 'model.onnx'), join(cwd, 'model.onnx'));
    await stage.manager('yarn', 'node 24', ['run', 'fastsafetensors', 'split-onnx', 'model.onnx'], { cwd });
    const verify = ['run', 'fastsafetensors', 'verify', 'model.safetensors'];
    await stage.manager('yarn', 'node 24', verify, { cwd });
    return `yarn ${versionOf('yarn')} (${linker}): ${uses}; split-onnx, verify`;
  },
});

export const installs = [
  fresh,
  byNpm('npm 11', 'node 20'),
  byNpm('npm 11', 'node 22', ['--ignore-scripts']),
  byNpm('npm 12', 'node 24'),
  byNpm('npm 12', 'node 24', ['--ignore-scripts']),
  pnpm,
  yarn('node-modules'),
  yarn('pnp'),
  peers,
];
