// Builds and runs the C++ tests: `node scripts/native-tests.mjs [--preset asan|tsan|coverage] [gtest arguments]`.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, buildFolder, configureTests, has, testEnvironment, top } from './cmake.mjs';

/** How many lines of a part's output are said again where it broke without a failed test. */
const LINES_AGAIN = 60;

/** A stream's last lines, while it is written on to `sink`. */
function passOn(stream, sink) {
  let kept = '';
  stream.setEncoding('utf8').on('data', (text) => {
    sink.write(text);
    kept = `${kept}${text}`.slice(-256 * LINES_AGAIN);
  });
  return () => kept.split('\n').slice(-LINES_AGAIN).join('\n').trimEnd();
}

/** Runs one of `shards` parts of the tests. `broken`: why the process ended otherwise than its tests say. */
async function runShard({ preset, args, folder, shard, shards }) {
  const report = join(folder, `report-${shard}.json`);
  const program = join(buildFolder(preset), 'native_tests');
  const tests = spawn(program, [`--gtest_output=json:${report}`, '--gtest_brief=1', ...args], {
    cwd: top,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...testEnvironment(preset), GTEST_TOTAL_SHARDS: String(shards), GTEST_SHARD_INDEX: String(shard) },
  });
  const printed = passOn(tests.stdout, process.stdout);
  const errors = passOn(tests.stderr, process.stderr);
  const [code, signal] = await once(tests, 'close');
  const exitCode = code ?? 1;
  const how = `part ${shard + 1} of ${shards} ended with ${signal ?? `exit code ${code}`}`;
  const broken = () => [`C++ tests: ${how}\n${printed()}\n${errors()}`];
  if (!existsSync(report)) return { exitCode: exitCode || 1, passed: 0, failed: 1, skipped: 0, broken: broken() };
  const { tests: total, failures, disabled, testsuites } = JSON.parse(readFileSync(report, 'utf8'));
  const all = testsuites.flatMap((suite) => suite.testsuite);
  const skipped = all.filter((test) => test.result === 'SKIPPED').length + disabled;
  const passed = total - failures - skipped;
  // A sanitizer's report, or a crash, after the tests had passed.
  if (exitCode !== 0 && failures === 0) return { exitCode, passed, failed: 1, skipped, broken: broken() };
  return { exitCode, passed, failed: failures, skipped, broken: [] };
}

/** {unavailable} or {exitCode, passed, failed, skipped, broken}, `broken` a text for each process that broke. */
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
    const broken = parts.flatMap((part) => part.broken);
    return { exitCode, passed: sum('passed'), failed: sum('failed'), skipped: sum('skipped'), broken };
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
  for (const text of result.broken) console.error(text);
  const where = preset === 'dev' ? '' : `${preset}: `;
  console.log(`${where}${result.passed} passed, ${result.failed} failed, ${result.skipped} skipped`);
  process.exit(result.exitCode || (result.passed === 0 ? 1 : 0));
}
