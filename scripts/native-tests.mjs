// Builds and runs the C++ tests: `node scripts/native-tests.mjs [--preset asan|tsan|coverage] [gtest arguments]`.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, buildFolder, configureTests, has, testEnvironment, top } from './cmake.mjs';

/** Runs one of `shards` parts of the tests. */
async function runShard({ preset, args, folder, shard, shards }) {
  const report = join(folder, `report-${shard}.json`);
  const program = join(buildFolder(preset), 'native_tests');
  const tests = spawn(program, [`--gtest_output=json:${report}`, '--gtest_brief=1', ...args], {
    cwd: top,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...testEnvironment(preset), GTEST_TOTAL_SHARDS: String(shards), GTEST_SHARD_INDEX: String(shard) },
  });
  const exitCode = await new Promise((resolve, reject) => {
    tests.once('error', reject);
    tests.once('close', (code) => resolve(code ?? 1));
  });
  if (!existsSync(report)) return { exitCode: exitCode || 1, passed: 0, failed: 1, skipped: 0 };
  const { tests: total, failures, disabled, testsuites } = JSON.parse(readFileSync(report, 'utf8'));
  const all = testsuites.flatMap((suite) => suite.testsuite);
  const skipped = all.filter((test) => test.result === 'SKIPPED').length + disabled;
  return { exitCode, passed: total - failures - skipped, failed: failures, skipped };
}

/** {unavailable} or {exitCode, passed, failed, skipped}. */
export async function runNativeTests({ preset = 'dev', args = [] }) {
  if (preset !== 'dev' && !has('clang++')) return { unavailable: `${preset} needs clang++ (apt-get install clang)` };
  if (!configureTests(preset)) return { unavailable: 'GoogleTest is not installed (apt-get install libgtest-dev)' };
  build(preset, 'native_tests');
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-native-'));
  try {
    // Most tests wait for something, so two processes take half the time of one. What is asked for by name runs in one.
    const shards = args.length > 0 ? 1 : Math.min(2, availableParallelism());
    const parts = await Promise.all(
      Array.from({ length: shards }, (_, shard) => runShard({ preset, args, folder, shard, shards })),
    );
    const sum = (key) => parts.reduce((total, part) => total + part[key], 0);
    const exitCode = parts.find((part) => part.exitCode !== 0)?.exitCode ?? 0;
    return { exitCode, passed: sum('passed'), failed: sum('failed'), skipped: sum('skipped') };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const args = process.argv.slice(2);
  const at = args.indexOf('--preset');
  const preset = at < 0 ? 'dev' : args.splice(at, 2)[1];
  const result = await runNativeTests({ preset, args });
  if (result.unavailable) {
    console.error(`C++ tests cannot run: ${result.unavailable}`);
    process.exit(1);
  }
  const where = preset === 'dev' ? '' : `${preset}: `;
  console.log(`${where}${result.passed} passed, ${result.failed} failed, ${result.skipped} skipped`);
  process.exit(result.exitCode || (result.passed === 0 ? 1 : 0));
}
