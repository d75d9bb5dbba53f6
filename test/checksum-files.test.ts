import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { mkdir, rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type LoadReport,
  ParallelLoader,
  SafeTensorsMetadata,
  type SaveTensor,
  saveFile,
  saveSharded,
} from 'fastsafetensors-node';
import { runCli } from './support/cli.js';
import { expectNothingHeld } from './support/metrics.js';
import { encodeFile, entry, newFolder } from './support/model-files.js';

// Where digests come from: the command, saveFile and saveSharded; and what `verify --data` says of them.

let folder: string;
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

const entries = [entry('a', 'F32', [300, 70]), entry('empty', 'F32', [0]), entry('b', 'U8', [7])];
const KEY = 'fastsafetensors.sums';

function write(name = 'model.safetensors'): string {
  const path = join(folder, name);
  writeFileSync(path, encodeFile(entries));
  return path;
}

function flip(path: string, offset: number): void {
  const bytes = readFileSync(path);
  bytes[offset]! ^= 4;
  writeFileSync(path, bytes);
}

async function load(files: string): Promise<LoadReport> {
  const loader = new ParallelLoader({ files, checksum: 'require' });
  for await (const [, tensor] of loader) tensor.dispose();
  return loader.report;
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

describe('checksum', () => {
  test.each(['header', 'sums file', 'blob'])('does not hide what the digests of the %s find', async (where) => {
    let path = join(folder, 'model.safetensors');
    if (where === 'blob') {
      const blob = sha256(encodeFile(entries));
      await mkdir(join(folder, 'blobs'));
      writeFileSync(join(folder, 'blobs', blob), encodeFile(entries));
      await mkdir(join(folder, 'snapshots', 'main'), { recursive: true });
      path = join(folder, 'snapshots', 'main', 'model.safetensors');
      await symlink(`../../blobs/${blob}`, path);
    } else {
      const tensors = entries.map(({ name, bytes }) => ({ name, dtype: 'U8', shape: [bytes.length], data: bytes }));
      await saveFile(tensors as SaveTensor[], path, { checksum: where === 'header' });
      if (where === 'sums file') expect((await runCli('checksum', path)).exitCode).toBe(0);
    }
    const before = existsSync(`${path}.sums.json`) ? readFileSync(`${path}.sums.json`, 'utf8') : undefined;
    expect((await runCli('verify', '--data', path)).exitCode).toBe(0);
    flip(path, statSync(path).size - 1);
    const { stderr, exitCode } = await runCli('checksum', path, '--algorithm', 'sha256');
    expect({ stderr, exitCode }).toEqual({ stderr: expect.stringContaining('--force'), exitCode: 1 });
    expect(stderr).toContain('CHECKSUM_MISMATCH');
    expect(existsSync(`${path}.sums.json`) ? readFileSync(`${path}.sums.json`, 'utf8') : undefined).toBe(before);
    expect((await runCli('verify', '--data', path)).exitCode).toBe(1);
    expect((await runCli('checksum', path, '--force')).exitCode).toBe(0);
    expect(readFileSync(`${path}.sums.json`, 'utf8')).not.toBe(before);
  });

  test('replaces a link of that name, and leaves what it leads to alone', async () => {
    const path = write();
    const other = join(folder, 'other');
    writeFileSync(other, 'mine');
    await symlink('other', `${path}.sums.json`);
    expect(await runCli('checksum', path)).toMatchObject({ stderr: expect.stringContaining('--force'), exitCode: 1 });
    expect(readFileSync(`${path}.sums.json`, 'utf8')).toBe('mine');
    expect(await runCli('checksum', path, '--force')).toMatchObject({ stderr: '', exitCode: 0 });
    expect(readFileSync(other, 'utf8')).toBe('mine');
    expect(await load(path)).toMatchObject({ verifiedTensors: 3 });
  });

  test('a link that leads nowhere is no missing file: nothing is loaded unverified', async () => {
    const path = write();
    await symlink('nowhere', `${path}.sums.json`);
    const loader = new ParallelLoader({ files: path });
    await expect(loader.iterateWeights().next()).rejects.toMatchObject({ code: 'IO_ERROR' });
  });

  test('very many empty tensors are few calls', async () => {
    const path = join(folder, 'empty.safetensors');
    writeFileSync(path, encodeFile(Array.from({ length: 20_000 }, (_, i) => entry(`t${i}`, 'F32', [0]))));
    const { stdout, exitCode } = await runCli('checksum', path, '--json');
    expect([JSON.parse(stdout).files[0].tensors, exitCode]).toEqual([20_000, 0]);
  });

  test('writes sums of SHA-256 that are those of node:crypto', async () => {
    const path = write();
    const { stdout, stderr, exitCode } = await runCli('checksum', path, '--algorithm', 'sha256', '--json');
    expect([stderr, exitCode]).toEqual(['', 0]);
    const sums = `${path}.sums.json`;
    const bytes = 4 * 300 * 70 + 7;
    expect(JSON.parse(stdout)).toEqual({
      algorithm: 'sha256',
      files: [{ path, sums, tensors: 3, bytes }],
      seconds: expect.any(Number),
    });
    const { dataStart } = await SafeTensorsMetadata.fromFile(path);
    expect(JSON.parse(readFileSync(sums, 'utf8'))).toEqual({
      size: statSync(path).size,
      header: `sha256:${sha256(readFileSync(path).subarray(0, dataStart))}`,
      tensors: Object.fromEntries(entries.map((each) => [each.name, `sha256:${sha256(each.bytes)}`])),
    });
    expect(await load(path)).toMatchObject({ verifiedTensors: 3 });
  });

  const xxhsum = spawnSync('xxhsum', ['--version']).error ? test.skip : test;
  xxhsum('writes sums of XXH3 that are those of xxhsum (skipped without the program, package xxhash)', async () => {
    const path = write();
    expect((await runCli('checksum', path)).exitCode).toBe(0);
    const of = (bytes: Uint8Array) => spawnSync('xxhsum', ['-H2'], { input: bytes }).stdout.toString().split(' ')[0];
    const { tensors } = JSON.parse(readFileSync(`${path}.sums.json`, 'utf8'));
    expect(tensors).toEqual(Object.fromEntries(entries.map(({ name, bytes }) => [name, `xxh3-128:${of(bytes)}`])));
  });

  test('takes a folder, and says what it has written', async () => {
    const paths = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'].map((name, i) => {
      const path = join(folder, name);
      writeFileSync(path, encodeFile([entry(`t${i}`, 'F32', [100])]));
      return path;
    });
    const { stdout, exitCode } = await runCli('checksum', folder);
    expect(exitCode).toBe(0);
    for (const path of paths) expect(stdout).toContain(`${path}.sums.json: xxh3-128 of 1 tensor, 400 B`);
    expect(await load(folder)).toMatchObject({ files: 2, verifiedTensors: 2 });
    flip(paths[1]!, statSync(paths[1]!).size - 1);
    await expect(load(folder)).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', path: paths[1], tensor: 't1' });
  });

  test('a file that is no model is refused', async () => {
    const path = join(folder, 'x.safetensors');
    writeFileSync(path, 'nothing');
    const { stderr, exitCode } = await runCli('checksum', path);
    expect([exitCode, stderr]).toEqual([1, expect.stringContaining('HEADER_TOO_SMALL')]);
    expect(readdirSync(folder)).toEqual(['x.safetensors']);
  });
});

describe('verify --data', () => {
  test('compares all data with its digests', async () => {
    const path = write();
    await runCli('checksum', path);
    const good = await runCli('verify', '--data', path);
    expect([good.exitCode, good.stdout]).toEqual([0, expect.stringContaining('data of 3 tensors verified')]);
    flip(path, statSync(path).size - 2);
    expect((await runCli('verify', path)).exitCode).toBe(0);
    const { stdout, exitCode } = await runCli('verify', '--data', '--json', path);
    expect(exitCode).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({ ok: false, files: [{ path, ok: false, code: 'CHECKSUM_MISMATCH' }] });
    expect(stdout).toContain('tensor \\"b\\"');
  });

  test('says what has no digest', async () => {
    const { stdout, exitCode } = await runCli('verify', '--data', write());
    expect(exitCode).toBe(0);
    expect(stdout).toContain('warning: 3 tensors without a digest: not verified');
  });

  test("compares a file of the hub's cache with the name of its blob", async () => {
    const blob = join(folder, 'blobs', sha256(encodeFile(entries)));
    await mkdir(join(folder, 'blobs'));
    writeFileSync(blob, encodeFile(entries));
    await mkdir(join(folder, 'snapshots', 'x'), { recursive: true });
    const path = join(folder, 'snapshots', 'x', 'model.safetensors');
    await symlink(join('..', '..', 'blobs', sha256(encodeFile(entries))), path);
    const good = await runCli('verify', '--data', path);
    expect([good.exitCode, good.stdout]).toEqual([0, expect.stringContaining('data of 3 tensors verified')]);
    flip(blob, statSync(blob).size - 1);
    const bad = await runCli('verify', '--data', path);
    expect([bad.exitCode, bad.stdout]).toEqual([1, expect.stringContaining('CHECKSUM_MISMATCH')]);
  });
});

const tensors = (): SaveTensor[] => [
  { name: 'w', shape: [50, 40], data: new Float32Array(2000).map((_, i) => i) },
  { name: 'odd', shape: [13], data: new Uint8Array(13).fill(7) },
  { name: 'none', shape: [0], data: new Uint8Array(0) },
];

describe('saving with checksum', () => {
  test('saveFile writes digests into the header, and the same tensors in the same order', async () => {
    const [plain, path] = [join(folder, 'plain.safetensors'), join(folder, 'm.safetensors')];
    await saveFile(tensors(), plain, { metadata: { format: 'pt' } });
    await saveFile(tensors(), path, { metadata: { format: 'pt' }, checksum: true });
    const [before, after] = [await SafeTensorsMetadata.fromFile(plain), await SafeTensorsMetadata.fromFile(path)];
    expect([...after.metadata.keys()]).toEqual(['format', KEY]);
    expect([...after].map((frame) => frame.toJSON())).toEqual([...before].map((frame) => frame.toJSON()));
    expect(readFileSync(path).subarray(after.dataStart)).toEqual(readFileSync(plain).subarray(before.dataStart));
    expect(await load(path)).toMatchObject({ verifiedTensors: 3 });
    flip(path, after.dataStart + 100);
    await expect(load(path)).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: 'w' });
    expect(readdirSync(folder).sort()).toEqual(['m.safetensors', 'plain.safetensors']);
  });

  test.each([
    ['a list', tensors],
    ['a stream', () => stream()],
  ])('saveSharded writes digests of %s into each header', async (_what, source) => {
    const out = join(folder, 'out');
    await saveSharded(source(), out, { checksum: true, maxShardBytes: 8000 });
    expect(await load(out)).toMatchObject({ files: 2, tensors: 3, verifiedTensors: 3 });
    await saveSharded(source(), out, { checksum: true });
    expect(await load(out)).toMatchObject({ files: 1, tensors: 3, verifiedTensors: 3 });
  });

  async function* stream(): AsyncGenerator<SaveTensor> {
    yield* tensors();
  }

  test('digests of a file that is replaced go with it', async () => {
    const path = write();
    await runCli('checksum', path);
    await saveFile(tensors(), path);
    expect(existsSync(`${path}.sums.json`)).toBe(false);
    await runCli('checksum', path);
    await saveFile(tensors(), path, { checksum: true });
    expect(existsSync(`${path}.sums.json`)).toBe(false);
    await runCli('checksum', path);
    await saveSharded(tensors(), folder, { maxShardBytes: 8000 });
    expect(readdirSync(folder).filter((name) => name.endsWith('.sums.json'))).toEqual([]);
    await runCli('checksum', folder);
    expect(await load(folder)).toMatchObject({ verifiedTensors: 3 });
    await saveSharded(tensors(), folder);
    expect(readdirSync(folder)).toEqual(['model.safetensors']);
  });

  test('a file that cannot be written leaves the old one and its digests', async () => {
    const path = write();
    await runCli('checksum', path);
    const broken: SaveTensor = { name: 'w', shape: [4], data: new Float32Array(4) };
    Object.defineProperty(broken, 'data', { get: () => new Proxy(new Float32Array(4), {}) });
    await expect(saveFile([broken], path)).rejects.toThrow();
    expect(await load(path)).toMatchObject({ verifiedTensors: 3 });
  });

  test('digests that metadata of another file brings along are not written', async () => {
    const path = join(folder, 'm.safetensors');
    await saveFile(tensors(), path, { checksum: true });
    const { metadata } = await SafeTensorsMetadata.fromFile(path);
    const other = join(folder, 'other.safetensors');
    await saveFile([{ name: 'w', shape: [1], data: new Float32Array(1) }], other, { metadata });
    expect((await SafeTensorsMetadata.fromFile(other)).metadata.has(KEY)).toBe(false);
    const merged = join(folder, 'merged.safetensors');
    expect((await runCli('merge', path, merged, '--include', 'odd', '--checksum')).exitCode).toBe(0);
    expect(await load(merged)).toMatchObject({ tensors: 1, verifiedTensors: 1 });
  });
});
