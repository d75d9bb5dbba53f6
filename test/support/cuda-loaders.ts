import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { emulators } from 'fastsafetensors-node/testing';

const top = join(__dirname, '..', '..');

/** All loader tests that need no process of their own. */
export const IN_PROCESS = [
  'read-back',
  'slices',
  'truncation',
  'load-errors',
  'shards',
  'dtype-conversion',
  'file-changes',
  'files-buffer',
  'parallel-loader',
  'copiers',
  'progress',
  'odd-names',
  'malformed',
  'checksums',
  'save-file',
];
/** Tests of processes of their own, which load on the main thread, in worker threads, or both. */
export const CHILDREN = ['worker-threads', 'ending', 'exit', 'collection', 'many-files'];

export type Thread = 'main thread' | 'worker thread';
const RUNNER: Readonly<Record<Thread, readonly string[]>> = {
  'main thread': ['--runInBand'],
  'worker thread': ['--workerThreads', '--maxWorkers=1', '--runner=./test/support/emulated/worker-runner.js'],
};

/**
 * Strict, late with its copies; it crashes a host that touches device memory, and aborts when device memory is left at
 * the end.
 */
export const emulatedDriver = () =>
  emulators.cuda.env({ DEVICES: 2, DELAY_US: 20, JITTER_US: 50, LEAKS: 'abort-memory' });

/**
 * Test files once more, unchanged, with a GPU as the device of loaders that name none: an emulated one unless `driver`
 * is the real one. Fails unless every test of every file passes.
 */
export function expectAllPassOn(
  device: string,
  thread: Thread,
  files: readonly string[],
  driver: 'emulated' | 'real' = 'emulated',
): void {
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-cuda-'));
  try {
    const report = join(folder, 'report.json');
    const args = ['--selectProjects', 'emulated-cuda', ...RUNNER[thread], '--json', `--outputFile=${report}`];
    const patterns = files.map((name) => `<rootDir>/test/${name}.test.ts`.replace('<rootDir>', top));
    const ended = spawnSync(
      process.execPath,
      [join('node_modules', 'jest', 'bin', 'jest.js'), ...args, '--runTestsByPath', ...patterns],
      {
        cwd: top,
        encoding: 'utf8',
        env: {
          ...process.env,
          NODE_OPTIONS: '',
          FST_TEST_DEVICE: device,
          ...(driver === 'emulated' ? emulatedDriver() : {}),
        },
      },
    );
    const { testResults, numPassedTests } = JSON.parse(readFileSync(report, 'utf8')) as Report;
    const failed = testResults.flatMap(({ message, assertionResults }) =>
      message && assertionResults.every(({ status }) => status === 'passed')
        ? [message]
        : assertionResults
            .filter(({ status }) => status !== 'passed')
            .map(({ fullName, failureMessages }) => `${fullName}\n${failureMessages.join('\n')}`),
    );
    const emulator = /^emulated CUDA: .*$/m.exec(ended.stderr)?.[0] ?? '';
    expect({ failed, emulator, signal: ended.signal, code: ended.status }).toEqual({
      failed: [],
      emulator: '',
      signal: null,
      code: 0,
    });
    expect(testResults.length).toBe(files.length);
    expect(numPassedTests).toBeGreaterThanOrEqual(files.length);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

interface Report {
  numPassedTests: number;
  testResults: {
    message: string;
    assertionResults: { status: string; fullName: string; failureMessages: string[] }[];
  }[];
}
