/** @jest-environment ./test/support/native-arrays-environment.js */
import { spawnSync } from 'node:child_process';
import { appendFile, cp, mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, relative } from 'node:path';
import { MODELS } from '../demo/models.js';
import { ERROR_CODES } from '../src/base/errors.js';
import { main } from '../src/cli/main.js';
import { saveFile } from '../src/safetensors/save-file.js';
import { useFakeDevices } from '../src/testing/fakes.js';
import { writeGraphModel } from './support/tf-models.js';

let folder: string;
const originalExitCode = process.exitCode;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cli-'));
});
afterEach(async () => {
  process.exitCode = originalExitCode;
  jest.restoreAllMocks();
  await rm(folder, { recursive: true });
});

/** Runs one command line in this process. */
async function cli(...args: string[]) {
  let stdout = '';
  let stderr = '';
  process.exitCode = undefined;
  jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
    stdout += text;
    return true;
  });
  jest.spyOn(process.stderr, 'write').mockImplementation((text) => {
    stderr += text;
    return true;
  });
  await main(['node', 'fastsafetensors', ...args]);
  jest.restoreAllMocks();
  return { stdout, stderr, exitCode: process.exitCode ?? 0 };
}

const save = async (name: string, tensors: Record<string, number[]>) => {
  const path = join(folder, name);
  const list = Object.entries(tensors).map(([tensor, values]) => ({
    name: tensor,
    dtype: 'F32' as const,
    shape: [values.length],
    data: new Uint8Array(Float32Array.from(values).buffer),
  }));
  await saveFile(list, path, { metadata: { made: 'here' } });
  return path;
};

describe('errors', () => {
  test('are one line with a code and end with 1', async () => {
    const path = join(folder, 'short.safetensors');
    await writeFile(path, 'short');
    const { stdout, stderr, exitCode } = await cli('inspect', path);
    expect([stdout, exitCode]).toEqual(['', 1]);
    expect(stderr).toMatch(/^error: HEADER_TOO_SMALL: [^\n]+\n$/);
  });

  test.each([
    ['a file that is none', 'IO_ERROR', ['inspect', 'nowhere', '--json']],
    ['a load of a file that is none', 'IO_ERROR', ['load', '--json', 'nowhere']],
    ['a model that is none', 'IO_ERROR', ['split-onnx', 'nowhere', '--json']],
    ['a misspelled flag', 'INVALID_ARGUMENT', ['inspect', 'nowhere', '--jso', '--json']],
    ['an argument that is missing', 'INVALID_ARGUMENT', ['load', '--json']],
    ['a command that there is not', 'INVALID_ARGUMENT', ['inspekt', '--json']],
  ])('are JSON with --json: %s', async (_, code, args) => {
    const { stdout, stderr, exitCode } = await cli(...args);
    expect([stdout, exitCode]).toEqual(['', 1]);
    const { error } = JSON.parse(stderr);
    expect(error).toMatchObject({ code, message: expect.stringMatching(/^(?!error)./) });
    if (code === 'IO_ERROR') expect(error.path).toMatch(/nowhere$/);
  });

  test('are not --version', async () => {
    const { version } = JSON.parse(await readFile(join(__dirname, '../package.json'), 'utf8'));
    expect(await cli('--version')).toEqual({ stdout: `${version}\n`, stderr: '', exitCode: 0 });
  });

  test('show where they came from with --debug', async () => {
    const { stderr } = await cli('--debug', 'split-onnx', join(folder, 'none.onnx'));
    expect(stderr).toMatch(/^error: IO_ERROR: .*\n(.*\n)* +at .*\n/);
    expect(stderr).toContain('ENOENT');
  });

  test.each([
    [['split-onnx', 'm.onnx', '--min-byte', '1'], '--min-bytes'],
    [['split-onnx', 'm.onnx', '--min-bytes', '1e3'], 'whole number'],
    [['split-onnx', 'm.onnx', '--shape', 'x'], 'name=dims'],
    [['inspekt'], 'inspect'],
    [['inspect'], "'file'"],
  ])('name misuse: %j', async (args, hint) => {
    const { stdout, stderr, exitCode } = await cli(...args);
    expect([stdout, exitCode]).toEqual(['', 1]);
    expect(stderr).toMatch(/^error: INVALID_ARGUMENT: /);
    expect(stderr).toContain(hint);
  });

  test('are not what --help is', async () => {
    const { stdout, stderr, exitCode } = await cli('--help');
    expect([stderr, exitCode]).toEqual(['', 0]);
    for (const command of ['inspect', 'verify', 'load', 'split-onnx']) expect(stdout).toContain(command);
  });

  test('cannot steer a terminal', async () => {
    const { stderr } = await cli('split-onnx', join(folder, 'a\u001b[2Jb.onnx'));
    expect(stderr).toContain('\\u001b[2Jb');
    expect(stderr).not.toContain('\u001b');
  });
});

describe('inspect', () => {
  test('lists tensors', async () => {
    const path = await save('a.safetensors', { w: [1, 2, 3], b: [4] });
    const { stdout } = await cli('inspect', path);
    expect(stdout).toContain('2 tensors, 16 B');
    expect(stdout).toContain('made: here');
    expect(stdout).toMatch(/^F32 +\[3\] +12 +w$/m);
  });

  test('as JSON', async () => {
    const path = await save('a.safetensors', { w: [1, 2, 3] });
    const { stdout, exitCode } = await cli('inspect', path, '--json');
    expect(JSON.parse(stdout)).toMatchObject({
      path,
      tensorCount: 1,
      metadata: { made: 'here' },
      tensors: [{ name: 'w', dtype: 'F32', shape: [3], byteLength: 12, dataOffsets: [0, 12] }],
    });
    expect(exitCode).toBe(0);
  });
});

describe('inspect of several files', () => {
  test('takes a folder and an index', async () => {
    const [a, b] = [await save('a.safetensors', { w: [1] }), await save('b.safetensors', { v: [1, 2] })];
    const index = join(folder, 'model.safetensors.index.json');
    const { stdout } = await cli('inspect', folder);
    expect(stdout).toMatch(/a\.safetensors: 1 tensor, 4 B.*b\.safetensors: 1 tensor, 8 B/s);
    await writeFile(index, JSON.stringify({ weight_map: { w: 'a.safetensors', v: 'b.safetensors' } }));
    for (const path of [folder, index]) {
      expect(JSON.parse((await cli('inspect', '--json', path)).stdout)).toMatchObject({
        path,
        tensorCount: 2,
        files: [
          { path: a, tensorCount: 1, tensors: [{ name: 'w' }] },
          { path: b, tensorCount: 1, metadata: { made: 'here' }, tensors: [{ name: 'v' }] },
        ],
      });
    }
  });

  test('a file of a folder that is broken is an error', async () => {
    await save('a.safetensors', { w: [1] });
    await writeFile(join(folder, 'b.safetensors'), 'short');
    const { stdout, stderr, exitCode } = await cli('inspect', folder);
    expect([stdout, exitCode]).toEqual(['', 1]);
    expect(stderr).toMatch(/^error: HEADER_TOO_SMALL: .*b\.safetensors has 5 bytes/);
  });
});

describe('verify', () => {
  test('leaves the name where it is not the beginning of what went wrong', async () => {
    const path = join(folder, 'nope');
    const { stdout, exitCode } = await cli('verify', path);
    expect(stdout).toMatch(`${path}: IO_ERROR: cannot open ${path}: No such file or directory`);
    expect(exitCode).toBe(1);
    await appendFile(await save('nope', { w: [1] }), 'x');
    expect((await cli('verify', path)).stdout).toMatch(`${path}: METADATA_INCOMPLETE_BUFFER: the tensors end at byte `);
  });

  const verify = async (...args: string[]) => {
    const { stdout, exitCode } = await cli('verify', '--json', ...args);
    return {
      ...(JSON.parse(stdout) as {
        ok: boolean;
        files: { path: string; ok: boolean; code?: string; warnings: string[] }[];
      }),
      exitCode,
    };
  };
  const index = async (total: number, map: Record<string, string>) => {
    const path = join(folder, 'model.safetensors.index.json');
    await writeFile(path, JSON.stringify({ metadata: { total_size: total }, weight_map: map }));
    return path;
  };

  test('reports each file, and fails when one does', async () => {
    const good = await save('good.safetensors', { w: [1] });
    const bad = await save('bad.safetensors', { w: [1, 2] });
    await truncate(bad, (await readFile(bad)).length - 1);
    expect(await verify(good)).toMatchObject({
      ok: true,
      exitCode: 0,
      files: [{ path: good, ok: true, tensors: 1, bytes: 4 }],
    });
    const both = await verify(good, bad, join(folder, 'none.safetensors'));
    expect(both).toMatchObject({ ok: false, exitCode: 1 });
    expect(both.files.map(({ ok }) => ok)).toEqual([true, false, false]);
    expect(both.files[1]!.code).toBe('METADATA_INCOMPLETE_BUFFER');
    expect(ERROR_CODES).toContain(both.files[2]!.code);
    const { stdout, exitCode } = await cli('verify', good, bad);
    expect(stdout).toMatch(/good\.safetensors: ok, 1 tensor, 4 B\n.*bad\.safetensors: METADATA_INCOMPLETE_BUFFER: /);
    expect(exitCode).toBe(1);
  });

  test('refuses trailing bytes, or warns about them', async () => {
    const path = await save('a.safetensors', { w: [1] });
    await appendFile(path, 'xyz');
    expect(await verify(path)).toMatchObject({ ok: false, exitCode: 1 });
    expect(await verify(path, '--allow-trailing-bytes')).toMatchObject({
      ok: true,
      exitCode: 0,
      files: [{ warnings: ['3 bytes after the last tensor'] }],
    });
  });

  test('checks a folder as a whole', async () => {
    await save('a.safetensors', { w: [1] });
    await save('b.safetensors', { v: [1] });
    expect(await verify(folder)).toMatchObject({ ok: true, files: [{ ok: true }, { ok: true }] });
    await save('c.safetensors', { w: [1] });
    expect(await verify(folder)).toMatchObject({
      ok: false,
      exitCode: 1,
      files: [{ path: folder, code: 'DUPLICATE_TENSOR' }, {}, {}, {}],
    });
  });

  test('checks an index: a wrong total_size is a warning', async () => {
    await save('a.safetensors', { w: [1] });
    await save('b.safetensors', { v: [1, 2] });
    const map = { w: 'a.safetensors', v: 'b.safetensors' };
    const path = await index(12, map);
    expect(await verify(path)).toMatchObject({ ok: true, files: [{ path, warnings: [] }, { ok: true }, { ok: true }] });
    await index(13, map);
    const found = await verify(folder);
    expect(found).toMatchObject({ ok: true, exitCode: 0 });
    expect(found.files[0]).toMatchObject({ path, warnings: ['total_size is 13, but the tensors have 12 bytes'] });
  });

  test('checks an index: shards that are absent or outside are errors', async () => {
    await save('a.safetensors', { w: [1] });
    const path = await index(4, { w: 'a.safetensors', v: 'none.safetensors' });
    expect((await verify(path)).files).toContainEqual(expect.objectContaining({ path, code: 'MISSING_SHARD' }));
    await index(4, { w: '../a.safetensors' });
    const outside = await verify(path);
    expect(outside).toMatchObject({ ok: false, exitCode: 1 });
    expect(outside.files).toEqual([expect.objectContaining({ path, code: 'UNSAFE_SHARD_PATH' })]);
    await index(4, { w: 'none.safetensors', v: '../a.safetensors' }); // nor behind a shard that is absent
    expect((await verify(path)).files).toEqual([expect.objectContaining({ path, code: 'UNSAFE_SHARD_PATH' })]);
  });

  test('checks an index: a broken shard is to blame and not the index; one that disagrees is alone', async () => {
    const a = await save('a.safetensors', { w: [1] });
    const b = await save('b.safetensors', { v: [1] });
    const path = await index(8, { w: 'b.safetensors', v: 'b.safetensors' });
    expect((await verify(path)).files).toEqual([expect.objectContaining({ path, code: 'INVALID_INDEX' })]);
    await index(8, { w: 'a.safetensors', v: 'b.safetensors' });
    await truncate(b, 20);
    expect(await verify(folder)).toMatchObject({
      ok: false,
      files: [
        { path: a, ok: true },
        { path: b, code: 'INVALID_HEADER_LENGTH' },
      ],
    });
    await rm(a);
    expect((await verify(folder)).files).toMatchObject([
      { path, code: 'MISSING_SHARD' },
      { path: a, code: 'IO_ERROR' },
      { path: b, code: 'INVALID_HEADER_LENGTH' },
    ]);
  });

  test('takes what a loader takes for a folder, an index or a file, and for nothing', async () => {
    await mkdir(join(folder, 'empty'));
    expect(await verify(join(folder, 'empty'))).toMatchObject({ ok: false, files: [{ code: 'NO_FILES' }] });
    expect(await verify(join(folder, 'no.json'))).toMatchObject({ ok: false, files: [{ code: 'IO_ERROR' }] });
    await writeFile(join(folder, 'odd.json'), '[]');
    expect(await verify(join(folder, 'odd.json'))).toMatchObject({ ok: false, files: [{ code: 'INVALID_INDEX' }] });
  });
});

test('load --devices splits a model, and says what each device got', async () => {
  await save('m.safetensors', { 'h.0.w': [1, 2], 'h.1.w': [3], head: [4, 5] });
  useFakeDevices({});
  try {
    const { stdout } = await cli('load', folder, '--devices', 'cuda:0, cuda:1');
    expect(stdout).toMatch(
      /^1 file, 3 tensors, 20 B .* on cuda:0, cuda:1\n {2}cuda:0: 1 tensor, 8 B\n {2}cuda:1: 2 tensors, 12 B\n$/,
    );
    const { devices } = JSON.parse(
      (await cli('load', folder, '--json', '--devices', 'cuda:0,cpu', '--split', 'bytes')).stdout,
    );
    expect(Object.keys(devices)).toEqual(['cuda:0', 'cpu']);
    expect((await cli('load', folder, '--devices', 'cuda:0,tpu')).stderr).toMatch(/INVALID_ARGUMENT: devices\[1\]/);
    expect((await cli('load', folder, '--split', 'bytes')).stderr).toMatch(/INVALID_ARGUMENT: split: 'bytes' needs/);
    expect((await cli('load', folder, '--devices', 'cpu', '--device', 'cpu')).stderr).toMatch(/expected one of them/);
  } finally {
    useFakeDevices(null);
  }
});

describe('an index that disagrees with its shards', () => {
  test('decides, which inspect, verify and load say; with --index strict it is an error to them', async () => {
    const a = await save('a.safetensors', { w: [1], extra: [2] });
    const path = join(folder, 'model.safetensors.index.json');
    await writeFile(path, JSON.stringify({ weight_map: { w: 'a.safetensors' }, metadata: { total_size: 4 } }));
    const note = /left out what it does not name: "extra" of a\.safetensors/;
    expect((await cli('inspect', folder)).stdout).toMatch(note);
    expect(JSON.parse((await cli('inspect', folder, '--json')).stdout).notes).toEqual([expect.stringMatching(note)]);
    const { stdout, exitCode } = await cli('verify', folder);
    expect(stdout).toMatch(note);
    expect(stdout).not.toContain('total_size'); // of what it names
    expect([stdout.startsWith(`${path}: ok\n${path}: warning: `), stdout.includes(`${a}: ok, `)]).toEqual([true, true]);
    expect(exitCode).toBe(0);
    expect((await cli('load', folder)).stdout).toMatch(/^1 file, 1 tensor, 4 B.*\n.*left out what it does not name/);
    for (const command of ['inspect', 'load'])
      expect((await cli(command, folder, '--index', 'strict')).stderr).toMatch(/^error: INVALID_INDEX: /);
    expect((await cli('verify', folder, '--index', 'strict')).stdout).toMatch(/: INVALID_INDEX: .*"extra"/);
    expect((await cli('verify', folder, '--index', 'loose')).stderr).toMatch(/^error: INVALID_ARGUMENT: .*strict/);
  });
});

describe('load', () => {
  test('prints its report', async () => {
    const path = await save('a.safetensors', { w: [1, 2, 3], b: [4] });
    const { stdout, exitCode } = await cli('load', path, '--json');
    expect(JSON.parse(stdout)).toMatchObject({ files: 1, tensors: 2, bytes: 16, device: 'cpu', copier: 'nogds' });
    expect(exitCode).toBe(0);
    expect((await cli('load', path)).stdout).toMatch(
      /^1 file, 2 tensors, 16 B in [\d.]+ s: [\d.]+ GB\/s with copier nogds on cpu\n$/,
    );
  });
});

describe('split-onnx', () => {
  const classifier = MODELS.find(({ name }) => name === 'PP-OCR classifier')!;
  const copy = async () => {
    const path = join(folder, 'm.onnx');
    await cp(classifier.file, path);
    return path;
  };

  test('says what it lifted and what it left', async () => {
    const { stdout, stderr, exitCode } = await cli('split-onnx', await copy());
    expect([stderr, exitCode]).toEqual(['', 0]);
    expect(stdout).toContain(`45 weights, 480.6 KiB, now external data of ${join(folder, 'm.split.onnx')}`);
    expect(stdout).toMatch(/^ +204 +[\d.]+ KiB +below the floor of 1024 bytes$/m);
  });

  test.each([[[]], [['--as-inputs']]])('checks bytes and results (%j)', async (flags) => {
    const { stdout, exitCode } = await cli(
      'split-onnx',
      await copy(),
      '--check',
      '--json',
      '--shape',
      'x=1,3,48,192',
      ...flags,
    );
    const printed = JSON.parse(stdout);
    expect(printed).toMatchObject({
      bytes: 492_096,
      check: { bytesCompared: 492_096, run: { withinTolerance: true, inputs: { x: [1, 3, 48, 192] } } },
    });
    expect(printed.tensors).toHaveLength(45);
    expect(exitCode).toBe(0);
  });

  test('does not show what --shape begins with', async () => {
    expect((await cli('split-onnx', '--help')).stdout).not.toContain('default: {}');
  });

  test('makes the folder that it writes to, and says which it cannot make', async () => {
    const out = join(folder, 'not', 'there', 'yet');
    const { stderr, exitCode } = await cli('split-onnx', await copy(), '--out', out);
    expect([stderr, exitCode]).toEqual(['', 0]);
    expect((await readdir(out)).sort()).toEqual(['m.safetensors', 'm.split.onnx']);
    for (const impossible of ['/proc/no/such/folder', join(folder, 'm.onnx', 'below')]) {
      const refused = await cli('split-onnx', join(folder, 'm.onnx'), '--out', impossible);
      expect(refused.stderr).toContain(`error: IO_ERROR: cannot make the folder ${impossible}: `);
      expect(refused.exitCode).toBe(1);
    }
  });

  test('says when the graphs could not be run', async () => {
    const { stdout, exitCode } = await cli('split-onnx', await copy(), '--check', '--shape', 'x=1,2,3');
    expect(stdout).toMatch(/check: 480\.6 KiB equal\ncheck: not run: .*--shape[^\n]*\n$/);
    expect(exitCode).toBe(1); // what did not run did not pass
  });
});

describe('split-tfjs', () => {
  test('prints as split-onnx does, with whole paths', async () => {
    const model = writeGraphModel(join(folder, 'model'));
    const out = join(folder, 'out');
    const stem = join(out, basename(model, '.json'));
    const { stdout, exitCode } = await cli('split-tfjs', relative(process.cwd(), model), '--out', relative('.', out));
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/^\d+ weights, [\d.]+ [KMi]*B, now beside /);
    expect(stdout).toContain(` beside ${stem}.split.json\nweights: ${stem}.safetensors\n`);
    const cut = await cli('split-tfjs', model, '--out', join(folder, 'cut'), '--max-shard-bytes', '20');
    expect(cut.stdout).toMatch(/\nweights: .*\.index\.json\n {9}\/.*-00001-of-\d+\.safetensors\n/);
    expect(cut.stdout).toContain(join(folder, 'cut'));
  });
});

describe('as a process', () => {
  const main = join(__dirname, '..', 'dist', 'src', 'cli', 'main.js');
  const run = (script: string, ...args: string[]) =>
    spawnSync('bash', ['-c', script, 'bash', process.execPath, main, ...args], { encoding: 'utf8' });

  test('a reader that stops early is no error', async () => {
    const many = Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [`a-long-name-of-a-tensor-${i}`, []]));
    const path = await save('many.safetensors', many);
    const { stdout, stderr, status } = run('set -o pipefail; "$1" "$2" inspect "$3" | head -n 1', path);
    expect({ stderr, status, lines: stdout.split('\n').length }).toEqual({ stderr: '', status: 0, lines: 2 });
  });

  test('output that cannot be written is IO_ERROR', async () => {
    const path = await save('a.safetensors', { a: [1] });
    const { stderr, status } = run('"$1" "$2" inspect "$3" > /dev/full', path);
    expect(stderr).toMatch(/^error: IO_ERROR: .*ENOSPC.*\n$/);
    expect(status).toBe(1);
  });
});
