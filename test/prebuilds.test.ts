import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type ElfNeeds, elfNeeds } from './support/elf.js';

// What each prebuilt binary asks of a system: the C library that it is for, and nothing of the C++ one. Binaries that
// are not there are not looked at; `npm run prebuild` makes them.

const TOP = join(__dirname, '..');
const OLDEST_GLIBC = [2, 28];
/** All four are in each package, which may have 6 MB. */
const MOST_BYTES = 1_150_000;

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

function complaints(target: string, needs: ElfNeeds): string[] {
  const [platform, libc] = target.split('.');
  const found: string[] = [];
  if (`linux-${needs.machine}` !== platform) found.push(`it is for ${needs.machine}`);
  const foreign = libc === 'glibc' ? (name: string) => !GLIBC.test(name) : (name: string) => name !== 'libc.so';
  found.push(...needs.libraries.filter(foreign).map((name) => `it needs the library ${name}`));
  const wrong = (version: string) => libc === 'musl' || !version.startsWith('GLIBC_') || isNewer(version);
  found.push(...needs.versions.filter(wrong).map((version) => `it needs ${version}`));
  const napi = (name: string) => name.startsWith('napi_') || name.startsWith('node_api_');
  const cpp = needs.imported.filter((name) => /^_Z/.test(name));
  found.push(...cpp.map((name) => `it takes ${name} from another library`));
  found.push(...needs.exported.filter((name) => !napi(name)).map((name) => `it shows ${name} to other libraries`));
  if (platform === 'linux-arm64' && needs.pageBytes < 65536) found.push(`pages of ${needs.pageBytes} bytes at most`);
  if (!needs.isStripped) found.push('it is not stripped');
  return found;
}

(built.length > 0 ? test.each(built) : test.skip.each(['none']))('%s asks only for its C library', (target) => {
  expect(complaints(target, elfNeeds(pathOf(target)))).toEqual([]);
  expect(statSync(pathOf(target)).size).toBeLessThan(MOST_BYTES);
});

test('the check sees what a build for this machine alone asks for', () => {
  const local = join(TOP, 'build', 'cmake', 'Release', 'fastsafetensors.node');
  const found = complaints(`linux-${process.arch}.musl`, elfNeeds(local)).join('\n');
  expect(found).toContain('it needs the library libstdc++.so.6');
  expect(found).toMatch(/it needs GLIBC_2\.\d+/);
  expect(found).toMatch(/it takes _Z\w+ from another library/);
  expect(complaints('linux-ppc64.glibc', elfNeeds(local))).toContain(`it is for ${process.arch}`);
});

test('nothing else lies among them', () => {
  const names = existsSync(join(TOP, 'prebuilds'))
    ? readdirSync(join(TOP, 'prebuilds'), { recursive: true, withFileTypes: true })
    : [];
  const files = names.filter((entry) => entry.isFile()).map(({ parentPath, name }) => join(parentPath, name));
  expect(files.filter((file) => !targets.map(pathOf).includes(file))).toEqual([]);
});
