import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { testFolder } from '../support/tensor-files.js';

// What was recorded from fastsafetensors is what it answers: asked again of the package itself. It is installed from
// PyPI, with torch (several GB), unless FASTSAFETENSORS_PYTHON names a python that has both.

const PACKAGES = ['fastsafetensors==0.5.0', 'fastsafetensor-3fs-reader==0.3.3', 'torch', 'tqdm', 'numpy'];
const folder = testFolder();
const top = resolve(__dirname, '../..');

function run(command: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: top,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr.slice(-2000)}`);
  return stdout;
}

function python(): string {
  const given = process.env.FASTSAFETENSORS_PYTHON;
  if (given) return given;
  run('python3', '-m', 'venv', join(folder, 'venv'));
  const made = join(folder, 'venv', 'bin', 'python');
  run(made, '-m', 'pip', 'install', '--quiet', '--no-cache-dir', ...PACKAGES);
  return made;
}

const gpu = existsSync('/dev/nvidia0');
if (gpu) console.warn('parity: this machine has a GPU, and answers were recorded without: not compared');

let command: string;
beforeAll(() => {
  command = python();
});
const ask = (...args: string[]) => JSON.parse(run(command, ...args));
const recordedIn = (name: string) => JSON.parse(readFileSync(join(top, 'fixtures/parity', name), 'utf8'));

test.each(['headers', 'names', 'slices', 'uses'])('its %s are those that were recorded', (what) => {
  expect(ask(`test/parity/record_${what}.py`)).toEqual(recordedIn(`${what}.json`));
});

(gpu ? test.skip : test)('fastsafetensors 0.5.0 answers as it was recorded', () => {
  const now = ask('test/parity/record.py', 'test/parity/configurations.json');
  expect(now).toEqual(recordedIn('configurations.json'));
});
