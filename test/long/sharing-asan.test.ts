import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

// Every test of memory that processes and threads share once more, with an addon that has AddressSanitizer and
// UndefinedBehaviorSanitizer: what is used wrongly aborts the process that does, one that is killed or outlives an
// exporter too.

const top = join(__dirname, '..', '..');
const addon = join(top, 'build', 'asan', 'Release', 'fastsafetensors.node');
const machine = { x64: 'x86_64', arm64: 'aarch64' }[process.arch as string];

/** Shared, as the addon comes into a process that does not have it. */
const { stdout: runtime } = spawnSync('clang++', [`-print-file-name=libclang_rt.asan-${machine}.so`], {
  encoding: 'utf8',
});
const env: Record<string, string> = {
  NODE_OPTIONS: '',
  FASTSAFETENSORS_NATIVE: addon,
  LD_PRELOAD: (runtime ?? '').trim(),
  // Node.js leaves memory behind at exit. Memory of the addon is counted by the tests themselves.
  ASAN_OPTIONS: 'abort_on_error=1:detect_leaks=0',
  UBSAN_OPTIONS: 'halt_on_error=1:abort_on_error=1',
};

function run(args: readonly string[]): { code: number | null; text: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, {
    cwd: top,
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  return { code: status, text: stdout + stderr };
}

const tested = existsSync(env.LD_PRELOAD!) ? test : test.skip; // needs clang and its runtime (apt-get install clang)

beforeAll(() => {
  if (tested !== test) return;
  const steps = "cmake.configure('asan'); cmake.build('asan', 'fastsafetensors')";
  const script = `import('./scripts/cmake.mjs').then((cmake) => { ${steps}; })`;
  const built = spawnSync(process.execPath, ['-e', script], { cwd: top, encoding: 'utf8' });
  expect(`${built.status} ${built.stderr}`).toBe('0 ');
}, 1_200_000);

tested('the addon has the sanitizer', () => {
  const script =
    "require('./dist/src/index.js').nativeMetrics(); console.log(process.report.getReport().sharedObjects.join())";
  const { code, text } = run(['-e', script]);
  expect(code).toBe(0);
  for (const library of [addon, env.LD_PRELOAD!]) expect(text).toContain(library);
  expect(spawnSync('nm', ['-D', addon], { encoding: 'utf8' }).stdout).toMatch(/U __asan_report_load8/);
});

tested.each(['handles', 'native-handles', 'cuda-handles', 'share', 'shares'])('all tests of %s hold', (name) => {
  const jest = join('node_modules', 'jest', 'bin', 'jest.js');
  const { code, text } = run([jest, '--selectProjects', 'unit', '--runInBand', `test/${name}.test.ts`]);
  if (code !== 0) throw new Error(text);
  expect(text).toMatch(/Tests: +\d+ passed, \d+ total/);
});
