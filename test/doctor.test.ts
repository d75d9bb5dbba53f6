import { closeSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { doctor } from 'fastsafetensors-node';
import { emulators } from 'fastsafetensors-node/testing';
import type { DoctorCheck, DoctorReport } from '../src/doctor/doctor.js';
import { runProbe } from '../src/doctor/run-probe.js';
import { threeFsMounts } from '../src/doctor/storage-checks.js';
import { runChild } from './support/child.js';
import { installWithoutBinary } from './support/installed.js';
import { inPrivateMounts, testUnless, whyNoFuse, whyNoMounts } from './support/private-mounts.js';
import { testFolder } from './support/tensor-files.js';

// doctor says of each thing that loads rest on whether it is there, works, and what to do if not; what crashes or hangs
// when it is tried is a line of the report.

const CLI = '../dist/src/cli/main.js';
const NAMES = [
  ...['addon', 'node', 'gpu', 'cufile', 'nccl', '3fs library', '3fs mounts', '/dev/shm', 'memlock', 'nofile'],
  ...['io_uring', 'huge pages', 'numa', 'page cache', 'leases'],
  ...['onnxruntime-node', 'tensorflow.js', 'framework copies'],
];
const folder = testFolder();

interface Place {
  env?: Record<string, string>;
  shell?: string;
  args?: string[];
  cli?: string;
}

/** The report of `doctor --json` in a process of its own, by name, and its exit code. */
async function diagnose({ args = [], cli = CLI, ...options }: Place = {}) {
  const { code, stdout, stderr } = await runChild(cli, ['doctor', '--json', ...args], { shell: quick(), ...options });
  expect(stderr).toBe('');
  const report = JSON.parse(stdout) as DoctorReport;
  expect(report.checks.map(({ name }) => name)).toEqual(NAMES);
  const broken = report.checks.filter(({ state }) => state === 'broken');
  expect({ code, ok: report.ok }).toEqual({ code: broken.length > 0 ? 1 : 0, ok: broken.length === 0 });
  for (const { state, name, remedy } of report.checks) {
    if (state === 'broken' && !remedy) throw new Error(`${name} is broken, and has no remedy`);
  }
  return Object.fromEntries(report.checks.map((check) => [check.name, check])) as Record<string, DoctorCheck>;
}

/** A package in a project, of one file. */
function fake(project: string, name: string, version: string, code: string): string {
  const target = join(folder, project, 'node_modules', name);
  mkdirSync(target, { recursive: true });
  writeFileSync(join(target, 'package.json'), JSON.stringify({ name, version, main: 'index.js' }));
  writeFileSync(join(target, 'index.js'), code);
  return target;
}
/** In a project whose ONNX Runtime loads at once. */
const quick = (more = '') => {
  const code = 'exports.InferenceSession = { create: async () => ({ release: async () => {} }) };';
  fake('quick', 'onnxruntime-node', '1.0.0', code);
  return `cd '${join(folder, 'quick')}'${more && `; ${more}`}`;
};
const inProject = (project: string) => ({ shell: `cd '${join(folder, project)}'` });

describe('by itself', () => {
  test('it says what is there, without a GPU, 3FS or root', async () => {
    const checks = await diagnose();
    expect(checks.addon).toMatchObject({
      state: 'ok',
      detail: expect.stringMatching(/, needs glibc 2\.\d+: .*\.node$/),
    });
    expect(checks.node).toMatchObject({ state: 'ok', detail: expect.stringContaining(process.version) });
    for (const name of ['nccl', '3fs library', '3fs mounts']) expect(checks[name]!.state).toBe('missing');
    expect(checks.numa!.state).toBe('ok');
    expect(checks['page cache']!.detail).toContain('mincore');
  });

  test('doctor() gives the same, and refuses wrong options only', async () => {
    const { ok, checks } = await doctor({ folder });
    expect(checks.map(({ name }) => name)).toEqual(NAMES);
    expect(ok).toBe(checks.every(({ state }) => state !== 'broken'));
    await expect(doctor({ folders: folder } as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(doctor({ folder: 1 } as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('it prints a line for each, and remedies below', async () => {
    const { code, stdout, stderr } = await runChild(CLI, ['doctor'], { shell: quick('ulimit -n 200 -l 64') });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    for (const name of NAMES) expect(stdout).toMatch(new RegExp(`^(ok|missing|broken) +${name}  `, 'm'));
    expect(stdout).toMatch(/^missing {2}memlock .*\n +→ ulimit -l unlimited/m);
  });
});

describe('limits', () => {
  test('that are low say so', async () => {
    const checks = await diagnose({ shell: quick('ulimit -n 200 -l 64') });
    expect(checks.nofile).toMatchObject({ state: 'missing', detail: expect.stringMatching(/^200 open files/) });
    expect(checks.memlock).toMatchObject({ state: 'missing', detail: expect.stringMatching(/^0 MiB: .*48 MiB/) });
  });

  testUnless(whyNoMounts())('of a small, private /dev/shm say so', async () => {
    const { '/dev/shm': shm } = await diagnose({ shell: quick(inPrivateMounts('16m')) });
    expect(shm).toMatchObject({ state: 'missing', detail: expect.stringMatching(/^16 MiB, 16 MiB free, .*48 MiB$/) });
    expect(shm!.remedy).toContain('--shm-size');
  });
});

describe('the folder', () => {
  test('is where a file system is tried; what is open for writing can have no lease', async () => {
    const models = join(folder, 'models');
    mkdirSync(models);
    const file = join(models, 'a.safetensors');
    writeFileSync(file, Buffer.alloc(4096));
    const writer = openSync(file, 'r+');
    try {
      const { leases } = await diagnose({ args: [models] });
      expect(leases).toMatchObject({ state: 'missing', detail: expect.stringContaining(`${file}: no read lease`) });
    } finally {
      closeSync(writer);
    }
    const { leases } = await diagnose({ args: [models] });
    expect(leases).toMatchObject({ state: 'ok', detail: expect.stringContaining(`${file}: a read lease is given`) });
  });

  test('need not be there', async () => {
    const checks = await diagnose({ args: [join(folder, 'none')] });
    for (const name of ['leases', 'page cache'])
      expect(checks[name]).toMatchObject({ state: 'missing', detail: expect.stringContaining('ENOENT') });
  });
});

describe('GPUs', () => {
  const direct = (): Record<string, string> => {
    const CUFILE_ENV_PATH_JSON = join(folder, 'p2p.json');
    writeFileSync(CUFILE_ENV_PATH_JSON, '{ "properties": { "use_pci_p2pdma": true } }');
    return { CUFILE_ENV_PATH_JSON };
  };

  test('that work are named, with their driver; so is a direct path of cuFile, and the library of 3FS', async () => {
    const env = { ...emulators.cuda.env({ DEVICES: 2 }), ...emulators.cufile.env(), ...emulators.hf3fs.env() };
    const { gpu, cufile, '3fs library': library } = await diagnose({ env: { ...env, ...direct() }, args: [folder] });
    expect(library).toMatchObject({ state: 'ok', detail: emulators.hf3fs.path });
    expect(gpu).toMatchObject({ state: 'ok', detail: expect.stringMatching(/^2 GPUs: cuda:0 .*, cuda:1 .* CUDA 1\d/) });
    expect(cufile).toMatchObject({ state: 'ok', detail: expect.stringMatching(/reads files in .* directly/) });
  });

  test('whose files cuFile refuses say why', async () => {
    const env = { ...emulators.cuda.env(), ...emulators.cufile.env({ REFUSE: '*/.fst-doctor*' }), ...direct() };
    const { cufile } = await diagnose({ env, args: [folder] });
    expect(cufile).toMatchObject({ state: 'missing', detail: expect.stringContaining(`refuses files in ${folder}: `) });
  });

  test('without a direct path say that cuFile would read through the host', async () => {
    const none = { CUFILE_ENV_PATH_JSON: join(folder, 'none.json') };
    const { cufile } = await diagnose({ env: { ...emulators.cuda.env(), ...emulators.cufile.env(), ...none } });
    expect(cufile).toMatchObject({ state: 'missing', detail: expect.stringContaining('compatibility mode') });
    expect(cufile!.remedy).toContain('nvidia-fs');
  });

  test('a driver that does not start is broken', async () => {
    const { gpu, cufile } = await diagnose({ env: emulators.cuda.env({ FAIL: 'cuInit:1:999' }) });
    expect(gpu).toMatchObject({ state: 'broken', detail: expect.stringContaining('cuInit failed') });
    expect(cufile!.state).toBe('missing');
  });

  test('a driver that is none is broken, and so is such a library of 3FS', async () => {
    const env = { FASTSAFETENSORS_CUDA_LIB: __filename, FASTSAFETENSORS_3FS_LIB: __filename };
    const checks = await diagnose({ env });
    for (const name of ['gpu', '3fs library'])
      expect(checks[name]).toMatchObject({ state: 'broken', detail: expect.stringContaining(__filename) });
  });

  test('a library of NCCL is named with its version; one that is too old, or none, is broken', async () => {
    const { nccl } = await diagnose({ env: emulators.nccl.env() });
    expect(nccl).toMatchObject({ state: 'ok', detail: expect.stringMatching(/^2\.\d+\.\d+, \/.*libnccl\.so\.2$/) });
    const { nccl: old } = await diagnose({ env: emulators.nccl.env({ VERSION: 21305 }) });
    expect(old).toMatchObject({ state: 'broken', detail: expect.stringContaining('is of version 2.13.5') });
    const { nccl: none } = await diagnose({ env: { FASTSAFETENSORS_NCCL_LIB: __filename } });
    expect(none).toMatchObject({ state: 'broken', detail: expect.stringContaining(__filename) });
  });

  test('a driver without a GPU is not', async () => {
    const { gpu } = await diagnose({ env: emulators.cuda.env({ FAIL: 'cuInit:1:100' }) });
    expect(gpu!.state).toBe('missing');
  });

  test('a driver that crashes is broken, and nothing else', async () => {
    const checks = await diagnose({ env: emulators.cuda.env({ DEVICES: 'text' }) });
    expect(checks.gpu).toMatchObject({ state: 'broken', detail: expect.stringMatching(/^crashed \(SIGABRT\)/) });
    expect(checks.addon!.state).toBe('ok');
  });
});

describe('3FS', () => {
  test('mounts are those of its type, spelled as they are', () => {
    const mountinfo = [
      '25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw',
      '36 24 0:50 / /mnt/3fs\\040a rw,nosuid shared:5 - fuse.hf3fs hf3fs.test rw',
      '37 24 0:51 / /mnt/other rw - fuse.other other rw',
    ].join('\n');
    expect(threeFsMounts(mountinfo)).toEqual(['/mnt/3fs a']);
  });

  const overFuse = testUnless(whyNoFuse());
  overFuse.each(['alive', 'stopped', 'killed'])('a mount whose daemon is %s', async (how) => {
    const { code, stdout, stderr } = await runChild('doctor.child.cjs', [how], {
      shell: quick(inPrivateMounts('32m')),
    });
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
    const { path, checks } = JSON.parse(stdout) as { path: string; checks: DoctorCheck[] };
    const of = (name: string) => checks.find((check) => check.name === name)!;
    expect(of('3fs library').state).toBe('ok');
    expect(of('/dev/shm')).toMatchObject({ state: 'broken', detail: expect.stringMatching(/^32 MiB, /) });
    const mounts = of('3fs mounts');
    if (how === 'alive') expect(mounts).toMatchObject({ state: 'ok', detail: path });
    else expect(mounts).toMatchObject({ state: 'broken', remedy: expect.stringContaining('hf3fs_fuse') });
    if (how === 'stopped') expect(mounts.detail).toBe(`${path}: no answer within 5 s`);
    if (how === 'killed') expect(mounts.detail).toMatch(/^\S+: the 3FS mount \S+ does not answer: .*ENOTCONN/);
  });
});

describe('frameworks', () => {
  test('that work are named with their versions and what loads', async () => {
    const { 'onnxruntime-node': ort, 'tensorflow.js': tf, 'framework copies': copies } = await diagnose({ shell: '' });
    const { version } = require('onnxruntime-node/package.json') as { version: string };
    expect(ort!.state).toBe('ok');
    expect(ort!.detail).toMatch(new RegExp(`^${version.replaceAll('.', '\\.')}, .*: providers cpu`));
    expect(tf).toMatchObject({ state: 'ok', detail: expect.stringContaining('without libtensorflow') });
    expect(copies!.state).toBe('ok');
  });

  test('that crash, or throw, when they are loaded are broken', async () => {
    fake('crashing', 'onnxruntime-node', '9.8.7', 'process.abort();');
    fake('crashing', '@tensorflow/tfjs-node', '4.3.2', 'throw new Error("libtensorflow.so.2 is not there");');
    const checks = await diagnose(inProject('crashing'));
    expect(checks['onnxruntime-node']).toMatchObject({
      state: 'broken',
      detail: expect.stringMatching(/^9\.8\.7, .*: it does not load: crashed \(SIGABRT\)/),
    });
    expect(checks['tensorflow.js']).toMatchObject({
      state: 'broken',
      detail: expect.stringMatching(/^@tensorflow\/tfjs-node 4\.3\.2, .*: libtensorflow\.so\.2 is not there$/),
    });
  });

  test('whose providers fail or crash say which', async () => {
    const code = `
      exports.listSupportedBackends = () => [{ name: 'cpu' }, { name: 'cuda' }, { name: 'tensorrt' }];
      exports.InferenceSession = { create: async (_, { executionProviders: [name] }) => {
        if (name === 'cuda') throw new Error('libcudnn.so.9 is not there');
        if (name === 'tensorrt') process.abort();
        return { release: async () => {} };
      } };`;
    fake('providers', 'onnxruntime-node', '1.0.0', code);
    const { 'onnxruntime-node': ort } = await diagnose({ ...inProject('providers'), env: emulators.cuda.env() });
    expect(ort!.detail).toContain(': providers cpu; cuda does not load: libcudnn.so.9 is not there; tensorrt does not');
    expect(ort!.remedy).toContain('for the GPU');
  });

  test('libtensorflow is named with its version', async () => {
    fake(
      'tensorflow',
      '@tensorflow/tfjs-node',
      '4.22.0',
      "exports.backend = () => ({ binding: { TF_Version: '2.9.1' } });",
    );
    const { 'tensorflow.js': tf } = await diagnose(inProject('tensorflow'));
    expect(tf).toMatchObject({ state: 'ok', detail: expect.stringMatching(/: libtensorflow 2\.9\.1$/) });
  });

  test('that are there twice are named', async () => {
    const first = fake('copies', 'onnxruntime-node', '1.20.0', 'throw new Error("no");');
    const second = fake('copies/node_modules/@hub/transformers', 'onnxruntime-node', '1.19.0', '');
    const third = fake('copies/node_modules/.pnpm/onnxruntime-node@1.18.0', 'onnxruntime-node', '1.18.0', '');
    const { 'framework copies': copies } = await diagnose(inProject('copies'));
    for (const path of [first, second, third]) expect(copies!.detail).toContain(path);
    expect(copies).toMatchObject({ state: 'ok', remedy: expect.stringContaining('npm dedupe') });
  });
});

test('without the addon, that is broken, and what needs it is not looked at', async () => {
  const installed = installWithoutBinary(join(folder, 'without'));
  const env = { FASTSAFETENSORS_NATIVE: '' }; // it may name the binary that all tests run on
  const checks = await diagnose({ cli: join(installed, 'dist/src/cli/main.js'), env });
  expect(checks.addon).toMatchObject({ state: 'broken', detail: expect.stringContaining('has no binary') });
  expect(checks.addon!.remedy).toMatch(/looked for:[\s\S]*install it again: /);
  for (const name of ['gpu', 'nccl', '3fs library', 'io_uring', 'leases'])
    expect(checks[name]).toMatchObject({ state: 'missing', detail: 'not looked at: the addon does not load' });
  expect(checks.node!.state).toBe('ok');
});

test('a probe that does not answer in time is killed', async () => {
  expect(await runProbe('mount', ['/'], 1)).toEqual({ failure: 'no answer within 0.001 s' });
});
