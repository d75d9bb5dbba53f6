// Builds and runs the C++ tests: `node scripts/native-tests.mjs [--sanitizer address|thread] [gtest arguments]`. Each sanitizer has a build folder of its own.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = dirname(dirname(fileURLToPath(import.meta.url)));

function has(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

function run(command, args, options = {}) {
  return spawnSync(command, args, { cwd: top, encoding: 'utf8', maxBuffer: 1 << 28, ...options });
}

/** {unavailable} or {exitCode, passed, failed, skipped}. */
export function runNativeTests({ sanitizer = '', args = [] }) {
  const build = sanitizer ? join('build', sanitizer) : join('build', 'tests');
  const compiler = sanitizer ? ['-DCMAKE_CXX_COMPILER=clang++'] : [];
  if (sanitizer && !has('clang++')) return { unavailable: 'the sanitizers need clang++ (apt-get install clang)' };
  if (!existsSync(join(top, build, 'CMakeCache.txt'))) {
    const generator = has('ninja') ? ['-G', 'Ninja'] : [];
    const configured = run('cmake', [
      '-S',
      '.',
      '-B',
      build,
      ...generator,
      ...compiler,
      '-DFST_TESTS=ON',
      `-DFST_SANITIZE=${sanitizer}`,
    ]);
    if (configured.status !== 0) {
      rmSync(join(top, build, 'CMakeCache.txt'), { force: true });
      if (/GTest/.test(configured.stderr))
        return { unavailable: 'GoogleTest is not installed (apt-get install libgtest-dev)' };
      process.stderr.write(configured.stdout + configured.stderr);
      throw new Error('cmake could not configure the C++ tests');
    }
  }
  const built = run('cmake', ['--build', build, '--parallel', '2', '--target', 'native_tests']);
  if (built.status !== 0) {
    process.stderr.write(built.stdout + built.stderr);
    throw new Error('the C++ tests do not compile');
  }
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-native-'));
  try {
    const report = join(folder, 'report.json');
    const tests = run(join(build, 'native_tests'), [`--gtest_output=json:${report}`, '--gtest_brief=1', ...args], {
      stdio: ['ignore', 'inherit', 'inherit'],
      env: {
        ...process.env,
        ASAN_OPTIONS: 'detect_leaks=1:abort_on_error=0',
        UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
        TSAN_OPTIONS: 'halt_on_error=1',
      },
    });
    const exitCode = tests.status ?? 1;
    if (!existsSync(report)) return { exitCode: exitCode || 1, passed: 0, failed: 1, skipped: 0 };
    const { tests: total, failures, disabled, testsuites } = JSON.parse(readFileSync(report, 'utf8'));
    const all = testsuites.flatMap((suite) => suite.testsuite);
    const skipped = all.filter((test) => test.result === 'SKIPPED').length + disabled;
    return { exitCode, passed: total - failures - skipped, failed: failures, skipped };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const at = process.argv.indexOf('--sanitizer');
  const sanitizer = at < 0 ? '' : process.argv[at + 1];
  const args = process.argv.slice(2).filter((_, i) => at < 0 || (i + 2 !== at && i + 2 !== at + 1));
  const result = runNativeTests({ sanitizer, args });
  if (result.unavailable) {
    console.error(`C++ tests cannot run: ${result.unavailable}`);
    process.exit(1);
  }
  console.log(
    `${sanitizer ? `${sanitizer} sanitizer: ` : ''}${result.passed} passed, ${result.failed} failed, ${result.skipped} skipped`,
  );
  process.exit(result.exitCode || (result.passed === 0 ? 1 : 0));
}
