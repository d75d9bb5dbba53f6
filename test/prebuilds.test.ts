import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type ElfNeeds, elfNeeds } from './support/elf.js';

// What each prebuilt binary asks of a system: the C library that it is for, and nothing of the C++ one. Binaries that
// are not there are not looked at; `npm run prebuild` makes them.

const TOP = join(__dirname, '..');
const OLDEST_GLIBC = [2, 28];
/** All four are in each package, which may have 6 MB with its dependencies. */
const MOST_BYTES = 1_130_000;
const MOST_INSTALLED = 6_000_000;

const targets = ['linux-x64.glibc', 'linux-arm64.glibc', 'linux-x64.musl', 'linux-arm64.musl'];
const pathOf = (target: string) => {
  const [platform, libc] = target.split('.');
  return join(TOP, 'prebuilds', platform!, `fastsafetensors-node.${libc}.node`);
};
const built = targets.filter((target) => existsSync(pathOf(target)));
const missing = targets.filter((target) => !built.includes(target));
if (missing.length > 0) console.warn(`skipped: ${missing.join(', ')}: not built, see npm run prebuild`);

/** Libraries of glibc, and the loader, which has what threads have of their own. */
const GLIBC = /^(lib(c|m|dl|rt|pthread)\.so\.\d|ld-linux-(x86-64|aarch64)\.so\.\d)$/;
const isNewer = (version: string) => {
  const numbers = version.replace('GLIBC_', '').split('.').map(Number);
  return numbers[0]! > OLDEST_GLIBC[0]! || (numbers[0] === OLDEST_GLIBC[0] && numbers[1]! > OLDEST_GLIBC[1]!);
};

function complaints(target: string, needs: ElfNeeds, mayShow: (name: string) => boolean): string[] {
  const [platform, libc] = target.split('.');
  const found: string[] = [];
  if (`linux-${needs.machine}` !== platform) found.push(`it is for ${needs.machine}`);
  const foreign = libc === 'glibc' ? (name: string) => !GLIBC.test(name) : (name: string) => name !== 'libc.so';
  found.push(...needs.libraries.filter(foreign).map((name) => `it needs the library ${name}`));
  const wrong = (version: string) => libc === 'musl' || !version.startsWith('GLIBC_') || isNewer(version);
  found.push(...needs.versions.filter(wrong).map((version) => `it needs ${version}`));
  // _ZTH: what initialises a thread_local, called where it is there.
  const cpp = needs.imported.filter((name) => /^_Z(?!TH)/.test(name));
  found.push(...cpp.map((name) => `it takes ${name} from another library`));
  found.push(...needs.exported.filter((name) => !mayShow(name)).map((name) => `it shows ${name} to other libraries`));
  if (platform === 'linux-arm64' && needs.pageBytes < 65536) found.push(`pages of ${needs.pageBytes} bytes at most`);
  if (!needs.isStripped) found.push('it is not stripped');
  return found;
}

const napi = (name: string) => name.startsWith('napi_') || name.startsWith('node_api_');

(built.length > 0 ? test.each(built) : test.skip.each(['none']))('%s asks only for its C library', (target) => {
  expect(complaints(target, elfNeeds(pathOf(target)), napi)).toEqual([]);
  expect(statSync(pathOf(target)).size).toBeLessThan(MOST_BYTES);
});

const EMULATORS = join(TOP, 'packages', 'emulators', 'lib');
const emulators = targets.filter((target) => existsSync(join(EMULATORS, target)));
if (emulators.length < targets.length) {
  const others = targets.filter((target) => !emulators.includes(target));
  console.warn(`skipped: emulators of ${others.join(', ')}: not built, see npm run prebuild -- --emulators`);
}

(emulators.length > 0 ? test.each(emulators) : test.skip.each(['none']))(
  'emulators of %s ask only for its C library',
  (target) => {
    const names = readdirSync(join(EMULATORS, target)).sort();
    expect(names).toEqual(['libcuda.so.1', 'libcufile.so.0', 'libhf3fs_api_shared.so']);
    const isApi = (name: string) => /^(cu[A-Z]|cuFile|hf3fs_|fst_emu_)/.test(name);
    const found = names.flatMap((name) => complaints(target, elfNeeds(join(EMULATORS, target, name)), isApi));
    expect(found).toEqual([]);
  },
);

const reason = built.length < targets.length ? 'not all binaries are built' : 'no source.tar.br, see npm run prepack';
const whole = built.length === targets.length && existsSync(join(TOP, 'source.tar.br'));
if (!whole) console.warn(`skipped: what the package weighs: ${reason}`);

(whole ? test : test.skip)('the package with all binaries and its dependencies is not larger than promised', () => {
  const args = ['pack', '--dry-run', '--json', '--ignore-scripts'];
  const [{ unpackedSize }] = JSON.parse(execFileSync('npm', args, { cwd: TOP, encoding: 'utf8' }));
  const { dependencies } = JSON.parse(readFileSync(join(TOP, 'package.json'), 'utf8'));
  const others = Object.keys(dependencies).flatMap((name) => {
    const folder = join(TOP, 'node_modules', name);
    const manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    expect(Object.keys(manifest.dependencies ?? {})).toEqual([]); // else they would have to be counted, too
    return readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map(({ parentPath, name: file }) => statSync(join(parentPath, file)).size);
  });
  const installed = others.reduce((sum, bytes) => sum + bytes, unpackedSize);
  expect(installed).toBeLessThanOrEqual(MOST_INSTALLED);
});

test('the check sees what a build for this machine alone asks for', () => {
  const local = join(TOP, 'build', 'cmake', 'Release', 'fastsafetensors.node');
  const found = complaints(`linux-${process.arch}.musl`, elfNeeds(local), napi).join('\n');
  expect(found).toContain('it needs the library libstdc++.so.6');
  expect(found).toMatch(/it needs GLIBC_2\.\d+/);
  expect(found).toMatch(/it takes _Z\w+ from another library/);
  expect(complaints('linux-ppc64.glibc', elfNeeds(local), napi)).toContain(`it is for ${process.arch}`);
});

test('nothing else lies among them', () => {
  const names = existsSync(join(TOP, 'prebuilds'))
    ? readdirSync(join(TOP, 'prebuilds'), { recursive: true, withFileTypes: true })
    : [];
  const files = names.filter((entry) => entry.isFile()).map(({ parentPath, name }) => join(parentPath, name));
  expect(files.filter((file) => !targets.map(pathOf).includes(file))).toEqual([]);
});
