import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { emulators } from 'fastsafetensors-node/testing';
import { runChild } from './support/child.js';

// GPUs by the package's surface, in processes that load the emulated driver and cuFile: which copier is chosen and why,
// fallbacks, failures, threads.

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-cufile-'));
  writeFileSync(
    join(folder, 'p2p.json'),
    '{\n  // a kernel with PCI peer-to-peer\n' +
      '  "properties": { "use_pci_p2pdma": true, "allow_compat_mode": false }\n}\n',
  );
});
afterAll(() => rmSync(folder, { recursive: true }));

interface Settings {
  cuda?: Record<string, string | number>;
  cufile?: Record<string, string | number> | null;
  env?: Record<string, string>;
}

async function run(args: string[], { cuda = {}, cufile = {}, env = {} }: Settings = {}): Promise<void> {
  const ended = await runChild('cuda.child.cjs', args, {
    flags: ['--expose-gc'],
    env: {
      ...emulators.cuda.env({ LEAKS: 'abort-memory', ...cuda }),
      ...(cufile ? emulators.cufile.env({ LEAKS: 'abort', ...cufile }) : {}),
      ...env,
    },
  });
  // The emulator says on stderr what is alive at exit.
  expect(ended).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
}

const p2p = (): Record<string, string> => ({ CUFILE_ENV_PATH_JSON: join(folder, 'p2p.json') });
const compat = (): Record<string, string> => ({ CUFILE_ENV_PATH_JSON: join(folder, 'none.json') });

test.each(['nogds', 'gds'])('%s loads on the main thread and in workers, on two devices at once', async (copier) => {
  await run(['everywhere', copier]);
});

test('unified loads on the main thread and in workers where it is asked for', async () => {
  await run(['everywhere', 'unified'], { env: { FASTSAFETENSORS_UNIFIED_MEM: '1' } });
});

describe("'auto'", () => {
  test('is gds where there is a direct path', () => run(['chooses', 'gds'], { env: p2p() }));
  test('is nogds with the option nogds', () => run(['chooses', 'nogds', '{"nogds":true}'], { env: p2p() }));
  test('is nogds where cuFile would use its compatibility mode', () => run(['chooses', 'nogds'], { env: compat() }));
  test('is nogds where compatibility mode is forced', () =>
    run(['chooses', 'nogds'], { env: { ...p2p(), CUFILE_FORCE_COMPAT_MODE: 'true' } }));
  test('is unified where the device shares the memory of the host', () =>
    run(['chooses', 'unified'], { cuda: { ATTRIBUTES: '18:1' }, env: compat() }));
  test.each(['0', 'false'])('is not unified where that is forbidden (%s)', (no) =>
    run(['chooses', 'nogds'], {
      cuda: { ATTRIBUTES: '18:1' },
      env: { ...compat(), FASTSAFETENSORS_UNIFIED_MEM: no },
    }),
  );
});

test.each([
  ['gds', 'cpu', 'the device is cpu', {}],
  ['gds', 'cuda:0', 'nvidia-fs', {}],
  ['gds', 'cuda:0', 'missing.so', { env: { FASTSAFETENSORS_CUFILE_LIB: '/nowhere/missing.so' } }],
  ['gds', 'cuda:7', 'shows 2 devices', {}],
  ['unified', 'cuda:0', 'memory of its own', {}],
  ['unified', 'cpu', 'the device is cpu', {}],
  ['nogds', 'cuda:0', 'cannot be loaded', { env: { FASTSAFETENSORS_CUDA_LIB: '/nowhere/libcuda.so' } }],
] satisfies [string, string, string, Settings][])(
  '%s on %s is not available: %s',
  async (copier, device, reason, settings: Settings) => {
    await run(['unavailable', copier, device, reason], { ...settings, env: { ...compat(), ...settings.env } });
  },
);

test.each([
  ['there is no direct path', {}],
  ['compatibility mode is forced', { CUFILE_FORCE_COMPAT_MODE: 'true' }],
])('where %s, gds tells that its name loads all the same, as above', async (_, env) => {
  await run(['unavailable', 'gds', 'cuda:0', '.', "copier: 'gds'.*compatibility mode"], {
    env: { ...compat(), ...env },
  });
});

test('a copier by name that cannot work is refused with its reason', async () => {
  await run(['refused', 'unified', 'cuda:0', 'COPIER_UNAVAILABLE']);
  await run(['refused', 'gds', 'cpu', 'COPIER_UNAVAILABLE']);
  await run(['refused', 'nogds', 'cuda:2', 'DEVICE_UNAVAILABLE']);
});

test('files that cuFile refuses fall back with one warning', async () => {
  await run(['fallsBack', 'nogds', '3'], { cufile: { REFUSE: '*.safetensors' } });
  await run(['fallsBack', 'nogds', '1'], { cufile: { REFUSE: '*/b.safetensors', REFUSE_CODE: 5008 } });
});

test.each([
  ['gds', 'nogds', 'nvidia-fs', {}],
  ['gds', 'unified', 'nvidia-fs', { ATTRIBUTES: '18:1' }],
  ['unified', 'nogds', 'memory of its own', {}],
  ['fgds', 'nogds', 'no FGDS', {}],
])("fallback: in place of '%s' that is not available, '%s' reads", async (copier, to, reason, cuda) => {
  await run(['standsIn', copier, to, reason], { cuda, env: compat() });
});

test('compatibility mode is named by the report when gds was asked for', async () => {
  await run(['fallsBack', 'gds in compatibility mode', '3'], { cufile: { COMPAT: 1 } });
});

test.each([
  ['nogds', 'CUDA_ERROR', { cuda: { FAIL: 'cuMemcpyHtoDAsync_v2:2:999' } }],
  ['nogds', 'CUDA_ERROR', { cuda: { FAIL: 'cuEventSynchronize:1:999' } }],
  ['nogds', 'OUT_OF_HOST_MEMORY', { cuda: { FAIL: 'cuMemHostRegister_v2:1:2' } }],
  ['nogds', 'OUT_OF_DEVICE_MEMORY', { cuda: { FAIL: 'cuMemAlloc_v2:1:2;cuMemAlloc_v2:2:2' } }],
  ['nogds', 'DEVICE_UNAVAILABLE', { cuda: { FAIL: 'cuInit:1:999' } }],
  ['gds', 'IO_ERROR', { cufile: { FAIL: 'cuFileRead:2:-5' } }],
  ['gds', 'GDS_ERROR', { cufile: { FAIL: 'cuFileHandleRegister:1:5022' } }],
  ['gds', 'GDS_ERROR', { cufile: { FAIL: 'cuFileBufRegister:1:5022' } }],
  ['gds', 'COPIER_UNAVAILABLE', { cufile: { FAIL: 'cuFileDriverOpen:1:5007' } }],
] satisfies [string, string, Settings][])('%s: %s once, %j; the next load works', async (copier, code, settings) => {
  await run(['failsOnce', copier, code], settings);
});

test('a lost device says so, and the other one goes on', async () => {
  await run(['lostDevice', 'nogds'], { cuda: { FAIL: 'execute:3:700', LEAKS: 'off' } });
});
