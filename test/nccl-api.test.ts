import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { emulators } from '../src/testing/index.js';
import { expectClean } from './support/child.js';
import { testFolder } from './support/tensor-files.js';

// csrc/device/nccl_api.h declares by hand what NCCL's header says: held against that header by the compiler, and tried
// with the real library, which needs no GPU for as much. Both are in pip's nvidia-nccl-cu12, or in NCCL_HOME.

const top = join(__dirname, '..');
const folder = testFolder();

function ncclHome(): string {
  if (process.env.NCCL_HOME) return process.env.NCCL_HOME;
  const code = 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])';
  const { stdout } = spawnSync('python3', ['-c', code], { encoding: 'utf8' });
  return stdout?.trim() || '/usr';
}

const home = ncclHome();
const library = join(home, 'lib', 'libnccl.so.2');
const withHeader = existsSync(join(home, 'include', 'nccl.h')) ? test : test.skip;
const withLibrary = existsSync(library) ? test : test.skip;

/** What the compiler says of the check; '' when it holds. */
function compile(sources: string): string {
  // nccl.h wants the toolkit's headers for the name of a stream alone.
  const stubs = join(folder, 'stubs');
  mkdirSync(stubs, { recursive: true });
  writeFileSync(join(stubs, 'cuda_runtime.h'), '#include <stddef.h>\ntypedef struct CUstream_st* cudaStream_t;\n');
  writeFileSync(join(stubs, 'cuda_fp16.h'), '');
  const check = join(top, 'test', 'native', 'nccl_api_check.cc');
  const folders = [
    `-I${sources}`,
    `-I${join(top, 'test', 'native')}`,
    '-isystem',
    stubs,
    '-isystem',
    join(home, 'include'),
  ];
  const args = ['-std=c++17', '-fsyntax-only', ...folders];
  const { status, stderr } = spawnSync('c++', [...args, check], { encoding: 'utf8' });
  return status === 0 ? stderr : `${status}: ${stderr}`;
}

withHeader('the slice agrees with nccl.h (skipped without nccl.h: set NCCL_HOME)', () => {
  expect(compile(join(top, 'csrc'))).toBe('');
});

withHeader.each([
  ['a parameter', '(int* version)', '(long* version)', /ncclGetVersion/],
  ['a missing one', 'ncclComm_t comm, cuda::CUstream stream', 'ncclComm_t comm', /ncclBroadcast/],
  ['a number', 'kUint8 = 1', 'kUint8 = 2', /kUint8/],
  ['an error', 'kInProgress = 7', 'kInProgress = 8', /kInProgress/],
  ['the configuration', 'int blocking;', 'size_t blocking;', /blocking|undefined/],
])('%s that is wrong would not compile (skipped without nccl.h: set NCCL_HOME)', (_, right, wrong, message) => {
  const broken = join(folder, 'csrc');
  cpSync(join(top, 'csrc'), broken, { recursive: true });
  const path = join(broken, 'device', 'nccl_api.h');
  const text = readFileSync(path, 'utf8');
  expect(text.split(right)).toHaveLength(2);
  writeFileSync(path, text.replace(right, wrong));
  expect(compile(broken)).toMatch(message);
});

withLibrary(
  'the real library makes ids, and says why there is no GPU (skipped without libnccl.so.2: set NCCL_HOME)',
  () =>
    expectClean('broadcast-failures.child.cjs', ['realLibrary'], {
      env: { ...emulators.cuda.env({ LEAKS: 'abort-memory' }), FASTSAFETENSORS_NCCL_LIB: library },
    }),
);
