// The whole test suite of a clone: TypeScript through jest, the core through GoogleTest where it is installed. Ends
// with how many ran; fails when anything failed or nothing ran. FASTSAFETENSORS_CPP_PRESET=asan: the core's tests with
// AddressSanitizer and UndefinedBehaviorSanitizer.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runNativeTests } from './native-tests.mjs';

const top = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-test-'));
const counts = { passed: 0, failed: 0, skipped: 0 };
/** Why the whole failed, where no failed test shows it. Said at the end, where it is found. */
const broken = [];

try {
  const native = await runNativeTests({ preset: process.env.FASTSAFETENSORS_CPP_PRESET || 'dev' });
  if (native.unavailable) {
    console.log(`C++ tests: not run, ${native.unavailable}`);
  } else {
    for (const key of Object.keys(counts)) counts[key] += native[key];
    broken.push(...native.broken);
  }

  const report = join(folder, 'jest.json');
  // One more than there are CPUs, since most tests wait for something: with as many, a third of the time was idle.
  const options = ['--json', `--outputFile=${report}`, `--maxWorkers=${availableParallelism() + 1}`];
  const jest = spawnSync(
    process.execPath,
    [join('node_modules', 'jest', 'bin', 'jest.js'), ...options, ...process.argv.slice(2)],
    {
      cwd: top,
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  );
  const results = JSON.parse(readFileSync(report, 'utf8'));
  counts.passed += results.numPassedTests;
  counts.failed += results.numFailedTests + results.numRuntimeErrorTestSuites;
  counts.skipped += results.numPendingTests + results.numTodoTests;
  if (jest.status !== 0) broken.push(`jest ended with ${jest.signal ?? `exit code ${jest.status}`}`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
for (const text of broken) console.error(text);
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exit(broken.length > 0 || counts.failed > 0 || counts.passed === 0 ? 1 : 0);
