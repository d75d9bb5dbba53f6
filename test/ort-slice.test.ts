import { spawnSync } from 'node:child_process';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ortHeaders } from './support/ort-header.js';
import { testFolder } from './support/tensor-files.js';

// csrc/ort/slice.h declares by hand what ONNX Runtime's header says: held against that header by the compiler.

const top = join(__dirname, '..');
const folder = testFolder();
let headers: string;
beforeAll(() => {
  headers = ortHeaders();
}, 300_000);

/** What the compiler says of the check; '' when it holds. */
function compile(sources: string): string {
  const { status, stderr } = spawnSync(
    'c++',
    [
      '-std=c++17',
      '-fsyntax-only',
      '-Wno-ignored-attributes',
      `-I${sources}`,
      '-isystem',
      headers,
      join(top, 'test', 'native', 'ort_slice_check.cc'),
    ],
    { encoding: 'utf8' },
  );
  return status === 0 ? stderr : `${status}: ${stderr}`;
}

test('the slice agrees with onnxruntime_c_api.h', () => {
  expect(compile(join(top, 'csrc'))).toBe('');
});

test.each([
  ['an index', 'RunWithBinding, 133,', 'RunWithBinding, 132,', /RunWithBinding: index/],
  [
    'a parameter',
    'BindInput, 136, 5, OrtStatus*, IoBinding*, const char*,',
    'BindInput, 136, 5, OrtStatus*, IoBinding*,',
    /BindInput: number of parameters/,
  ],
  [
    'a size',
    'SessionGetInputCount, 30, 1, OrtStatus*, const OrtSession*, size_t*',
    'SessionGetInputCount, 30, 1, int, const OrtSession*, size_t*',
    /SessionGetInputCount: size of a parameter/,
  ],
  [
    'a pointer',
    'UpdateCUDAProviderOptions, 206, 11, OrtStatus*, CudaOptions*, const char* const*, const char* const*, size_t',
    'UpdateCUDAProviderOptions, 206, 11, OrtStatus*, CudaOptions*, const char* const*, size_t, const char* const*',
    /UpdateCUDAProviderOptions: what is a pointer/,
  ],
  ['a number', 'kBFloat16 = 16', 'kBFloat16 = 15', /static assertion failed/],
  ['an error code', 'kInvalidGraph = 10', 'kInvalidGraph = 11', /static assertion failed/],
])('%s that is wrong would not compile', (what, right, wrong, message) => {
  const sources = join(folder, what.replaceAll(' ', '-'));
  cpSync(join(top, 'csrc', 'ort'), join(sources, 'ort'), { recursive: true });
  const slice = join(sources, 'ort', 'slice.h');
  const text = readFileSync(slice, 'utf8');
  expect(text.split(right).length).toBe(2);
  writeFileSync(slice, text.replace(right, wrong));
  expect(compile(sources)).toMatch(message);
});
