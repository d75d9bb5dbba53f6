import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { emulators } from 'fastsafetensors-node/testing';

// The loader tests once more, unchanged, on each emulated GPU: strict, late copies, host access to device memory crashes, and no device memory may be left at
// the end.

const LOADER_TESTS = ['read-back', 'slices', 'file-changes', 'truncation', 'load-errors', 'shards'];
const top = join(__dirname, '..', '..');

test.each(['cuda:0', 'cuda:1'])(
  'every loader test holds on %s',
  (device) => {
    const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-cuda-'));
    try {
      const report = join(folder, 'report.json');
      const args = ['--config', 'jest.cuda.config.js', '--runInBand', '--json', `--outputFile=${report}`];
      const ended = spawnSync(
        process.execPath,
        [
          join('node_modules', 'jest', 'bin', 'jest.js'),
          ...args,
          ...LOADER_TESTS.map((name) => `/test/${name}\\.test`),
        ],
        {
          cwd: top,
          encoding: 'utf8',
          env: {
            ...process.env,
            NODE_OPTIONS: '',
            FST_TEST_DEVICE: device,
            ...emulators.cuda.env({ DEVICES: 2, DELAY_US: 20, JITTER_US: 50, LEAKS: 'abort-memory' }),
          },
        },
      );
      const { numPassedTests, testResults } = JSON.parse(readFileSync(report, 'utf8'));
      const failed = testResults.flatMap((file: { assertionResults: { status: string; fullName: string }[] }) =>
        file.assertionResults.filter(({ status }) => status !== 'passed').map(({ fullName }) => fullName),
      );
      expect({ failed, signal: ended.signal, code: ended.status }).toEqual({ failed: [], signal: null, code: 0 });
      expect(testResults.length).toBe(LOADER_TESTS.length);
      expect(numPassedTests).toBeGreaterThan(40);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
  300_000,
);
