// Builds and runs the C++ tests: `node scripts/native-tests.mjs [--preset asan|tsan|coverage] [gtest arguments]`.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, buildFolder, configureTests, has, testEnvironment, top } from './cmake.mjs';

/** {unavailable} or {exitCode, passed, failed, skipped}. */
export function runNativeTests({ preset = 'dev', args = [] }) {
  if (preset !== 'dev' && !has('clang++')) return { unavailable: `${preset} needs clang++ (apt-get install clang)` };
  if (!configureTests(preset)) return { unavailable: 'GoogleTest is not installed (apt-get install libgtest-dev)' };
  build(preset, 'native_tests');
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-native-'));
  try {
    const report = join(folder, 'report.json');
    const arguments_ = [`--gtest_output=json:${report}`, '--gtest_brief=1', ...args];
    const tests = spawnSync(join(buildFolder(preset), 'native_tests'), arguments_, {
      cwd: top,
      stdio: ['ignore', 'inherit', 'inherit'],
      env: testEnvironment(preset),
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
  const args = process.argv.slice(2);
  const at = args.indexOf('--preset');
  const preset = at < 0 ? 'dev' : args.splice(at, 2)[1];
  const result = runNativeTests({ preset, args });
  if (result.unavailable) {
    console.error(`C++ tests cannot run: ${result.unavailable}`);
    process.exit(1);
  }
  const where = preset === 'dev' ? '' : `${preset}: `;
  console.log(`${where}${result.passed} passed, ${result.failed} failed, ${result.skipped} skipped`);
  process.exit(result.exitCode || (result.passed === 0 ? 1 : 0));
}
