import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { emulators } from 'fastsafetensors-node/testing';
import { emulatedDriver } from './cuda-loaders.js';

export const LOADER_TESTS = ['read-back', 'slices', 'truncation', 'shards', 'checksums'];

const top = join(__dirname, '..', '..');
const shared = (): string[] => readdirSync('/dev/shm').filter((name) => /^(hf3fs-iov-|sem\.hf3fs)/.test(name));

interface Report {
  numPassedTests: number;
  testResults: { assertionResults: { status: string; fullName: string }[] }[];
}

/**
 * Loader tests once more, unchanged, over the emulated 3FS: the folder for temporary files is a mount, so that 'auto'
 * is '3fs'. Completions come late and in another order, every third read is put off, and a ring vanishes now and then;
 * the emulator ends the process when it is misused or anything is left.
 */
export function expectAllPassOverThreeFs(
  device: string,
  names: readonly string[] = LOADER_TESTS,
  driver: 'emulated' | 'real' = 'emulated',
): void {
  const project = device === 'cpu' ? 'unit' : 'emulated-cuda';
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-3fs-'));
  const before = shared();
  try {
    const mount = join(folder, 'mount');
    const iovs = join(mount, '3fs-virt', 'iovs');
    mkdirSync(iovs, { recursive: true });
    const report = join(folder, 'report.json');
    const tests = names.map((name) => `/test/${name}\\.test`);
    const args = ['--selectProjects', project, '--runInBand', '--json', `--outputFile=${report}`, ...tests];
    const ended = spawnSync(process.execPath, [join('node_modules', 'jest', 'bin', 'jest.js'), ...args], {
      cwd: top,
      encoding: 'utf8',
      env: {
        ...process.env,
        NODE_OPTIONS: '',
        TMPDIR: mount,
        ...emulators.hf3fs.env({ SHUFFLE: 5, EAGAIN_EVERY: 3, LATENCY_MS: 0.2, BANDWIDTH: 2e9, RING_LOST: 40 }),
        ...(device !== 'cpu' && driver === 'emulated' ? emulatedDriver() : {}),
        ...(device === 'cpu' ? {} : { FST_TEST_DEVICE: device }),
      },
    });
    if (!existsSync(report)) throw new Error(ended.stderr);
    const { numPassedTests, testResults } = JSON.parse(readFileSync(report, 'utf8')) as Report;
    const failed = testResults.flatMap(({ assertionResults }) =>
      assertionResults.filter(({ status }) => status !== 'passed').map(({ fullName }) => fullName),
    );
    expect({ failed, signal: ended.signal, code: ended.status }).toEqual({ failed: [], signal: null, code: 0 });
    expect(testResults.length).toBe(names.length);
    expect(numPassedTests).toBeGreaterThan(40);
    expect(readdirSync(iovs)).toEqual([]);
    expect(shared()).toEqual(before);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
