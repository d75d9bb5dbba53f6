import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { nativeMetrics } from '../src/native/metrics.js';
import { testFolder } from './support/tensor-files.js';

const folder = testFolder();

afterEach(() => {
  delete process.env.FASTSAFETENSORS_NATIVE;
});

test.each([
  ['missing', false],
  ['no addon', true],
])('a file that is %s in FASTSAFETENSORS_NATIVE is an error that names it', async (_what, exists) => {
  const path = join(folder, 'wrong.node');
  if (exists) await writeFile(path, 'text');
  process.env.FASTSAFETENSORS_NATIVE = path;
  expect(nativeMetrics).toThrow(
    expect.objectContaining({
      code: 'ADDON_MISSING',
      message: expect.stringContaining(`FASTSAFETENSORS_NATIVE names ${path}`),
    }),
  );
});

test('FASTSAFETENSORS_NATIVE may be relative to the working folder', () => {
  process.env.FASTSAFETENSORS_NATIVE = 'build/cmake/Release/fastsafetensors.node';
  expect(nativeMetrics()).toMatchObject({ inFlight: 0 });
});
