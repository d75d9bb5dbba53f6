import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

// exit() destroys static objects while our threads still run: the addon has none that has to be destroyed. A compiler
// registers each of those by __cxa_atexit.

test('no static object of the addon has a destructor', () => {
  const build = join(__dirname, '..', 'build', 'cmake');
  const addon = join(build, 'CMakeFiles', 'fastsafetensors.dir'); // in csrc/napi, or in Unity
  const objects = readdirSync(addon, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.cc.o') || name.endsWith('_cxx.cxx.o'))
    .map((name) => join(addon, name));
  const symbols = execFileSync('nm', ['-A', '-u', join(build, 'libcore.a'), ...objects], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  }).split('\n');
  expect(objects.length).toBeGreaterThan(0);
  expect(symbols.filter((line) => /\b(atexit|on_exit)$/.test(line)).length).toBeGreaterThan(0); // it is read at all
  expect(symbols.filter((line) => /\b__cxa_(thread_)?atexit\b/.test(line))).toEqual([]);
});
