import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { CONVERTIBLE } from '../../src/base/dtype.js';
import { edgeValues } from '../support/edge-values.js';
import { newFolder } from '../support/model-files.js';

const run = promisify(execFile);
const fixture = join(__dirname, '..', '..', 'fixtures', 'ml-dtypes.json');

/** `RECORD=1 npx jest test/long/ml-dtypes.test.ts` writes the answers down. */
test('ml_dtypes answers as it was recorded', async () => {
  const folder = await newFolder();
  try {
    await run('python3', ['-m', 'venv', join(folder, 'venv')]);
    const recorded = JSON.parse(readFileSync(fixture, 'utf8'));
    const packages = [`ml_dtypes==${recorded.ml_dtypes}`, `numpy==${recorded.numpy}`];
    await run(join(folder, 'venv', 'bin', 'pip'), ['install', '--quiet', ...packages]);
    for (const dtype of CONVERTIBLE) await writeFile(join(folder, `${dtype}.bin`), edgeValues(dtype));
    const script = join(__dirname, 'ml-dtypes.py');
    const { stdout } = await run(join(folder, 'venv', 'bin', 'python'), [script, folder]);
    if (process.env.RECORD === '1') await writeFile(fixture, `${stdout}\n`);
    else expect(JSON.parse(stdout)).toEqual(recorded);
  } finally {
    await rm(folder, { recursive: true });
  }
});
