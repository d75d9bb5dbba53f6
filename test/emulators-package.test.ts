import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { libcOfProcess } from '../src/native/missing-addon.js';
import { emulators } from '../src/testing/index.js';
import { testFolder } from './support/tensor-files.js';

// Where the package is installed, emulators come from a package of their own: found beside it, or in the project.

const TOP = join(__dirname, '..');
const folder = testFolder();
const target = `${process.platform}-${process.arch}.${libcOfProcess().name}`;

function emulatorsAt(modules: string): string {
  const path = join(modules, 'fastsafetensors-node-emulators');
  mkdirSync(join(path, 'lib', target), { recursive: true });
  cpSync(join(TOP, 'packages/emulators/package.json'), join(path, 'package.json'));
  writeFileSync(join(path, 'lib', target, 'libcuda.so.1'), '');
  return path;
}

/** What `emulators.cuda.path` says in `project`, of a package that is installed somewhere else. */
function cuda(project: string, installed: string): string {
  const code = `
    const { emulators } = require(${JSON.stringify(join(installed, 'dist/src/testing/index.js'))});
    try { console.log(emulators.cuda.path); } catch ({ code, message }) { console.log(code, message); }`;
  return execFileSync(process.execPath, ['-e', code], { cwd: project, encoding: 'utf8' }).trim();
}

test('the package of emulators has the version of this one', () => {
  const [one, other] = ['package.json', 'packages/emulators/package.json'].map((path) =>
    JSON.parse(readFileSync(join(TOP, path), 'utf8')),
  );
  expect(other.version).toBe(one.version);
});

test.each(['cuda', 'cufile', 'nccl', 'hf3fs'] as const)('its README says what each setting of %s does', (name) => {
  const page = readFileSync(join(TOP, 'packages/emulators/README.md'), 'utf8');
  const [, section] = new RegExp(`^### ${name}\\n([\\s\\S]*?)(?=^### |(?![\\s\\S]))`, 'm').exec(page)!;
  const told = section!
    .split('\n')
    .filter((line) => line.startsWith('| `'))
    .flatMap((line) => [...line.matchAll(/`([A-Z][A-Z0-9_]+)`/g)].map(([, setting]) => setting!));
  const error = (() => {
    try {
      return emulators[name].env({ ZEBRACROSSING: 1 });
    } catch (thrown) {
      return thrown as Error;
    }
  })();
  const known = /there are (.*)$/.exec(String(error.message))![1]!;
  expect(told.sort()).toEqual(known.split(', ').sort());
});

test('emulators are found beside the package or in the project; without them an error says what to install', () => {
  const store = join(folder, 'store', 'node_modules');
  const installed = join(store, 'fastsafetensors-node');
  const project = join(folder, 'project');
  mkdirSync(project, { recursive: true });
  mkdirSync(installed, { recursive: true });
  cpSync(join(TOP, 'dist'), join(installed, 'dist'), { recursive: true });
  cpSync(join(TOP, 'package.json'), join(installed, 'package.json'));

  const missing = cuda(project, installed);
  expect(missing).toContain(`COPIER_UNAVAILABLE there is no emulator libcuda.so.1 for ${target}`);
  expect(missing).toContain('npm install --save-dev fastsafetensors-node-emulators');

  const inProject = emulatorsAt(join(project, 'node_modules'));
  expect(cuda(project, installed)).toBe(realpathSync(join(inProject, 'lib', target, 'libcuda.so.1')));
  const beside = emulatorsAt(store);
  expect(cuda(project, installed)).toBe(realpathSync(join(beside, 'lib', target, 'libcuda.so.1')));
  rmSync(join(beside, 'lib'), { recursive: true });
  // That of another version names the place.
  expect(cuda(project, installed)).toContain(join('lib', target, 'libcuda.so.1'));
});
