import { lstatSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { loadFile, SafeTensorsMetadata } from 'fastsafetensors-node';
import { runCli } from './support/cli.js';
import { expectNothingHeld } from './support/metrics.js';
import { type Entry, encodeFile, entry, newFolder } from './support/model-files.js';

// reshard, convert and merge: the same tensors in other files.

let folder: string;
let source: string;
let out: string;
/** Without NaNs, which conversions make quiet. */
const numbers = (name: string): Entry => {
  const made = entry(name, 'BF16', [100, 10]);
  return { ...made, bytes: made.bytes.map((byte, i) => (i % 2 === 1 ? byte & 0xbf : byte)) };
};
const entries = [numbers('h.0.w'), numbers('h.1.w'), entry('h.1.ids', 'I64', [7]), entry('odd', 'U8', [13])];
beforeEach(async () => {
  folder = await newFolder();
  source = join(folder, 'source.safetensors');
  writeFileSync(source, encodeFile(entries, { metadata: { format: 'pt' } }));
  out = join(folder, 'out');
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

async function bytesOf(files: string): Promise<Record<string, [string, number[], string]>> {
  const tensors = await loadFile(files);
  const found: Record<string, [string, number[], string]> = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    found[name] = [tensor.dtype, [...tensor.shape], Buffer.from(await tensor.toHost()).toString('hex')];
    tensor.dispose();
  }
  return found;
}

const expected = Object.fromEntries(
  entries.map(({ name, dtype, shape, bytes }) => [name, [dtype, shape, Buffer.from(bytes).toString('hex')]]),
);

test('reshard writes a set of the size that is asked for, and merge one file again: byte-equal tensors', async () => {
  const { stdout, stderr, exitCode } = await runCli('reshard', source, out, '--max-shard-bytes', '2KB', '--json');
  expect([stderr, exitCode]).toEqual(['', 0]);
  const names = ['model-00001-of-00003.safetensors', 'model-00002-of-00003.safetensors'];
  const files = [...names, 'model-00003-of-00003.safetensors'];
  expect(JSON.parse(stdout)).toEqual({
    files: files.map((name) => join(out, name)),
    tensors: 4,
    bytes: 4069,
    leftOut: 0,
    seconds: expect.any(Number),
    bytesPerSecond: expect.any(Number),
    notes: [],
  });
  expect(readdirSync(out).sort()).toEqual([...files, 'model.safetensors.index.json']);
  expect(await bytesOf(out)).toEqual(expected);
  expect(JSON.parse(await readFile(join(out, 'model.safetensors.index.json'), 'utf8')).metadata.total_size).toBe(4069);

  const one = join(folder, 'one.safetensors');
  writeFileSync(one, 'something else');
  expect((await runCli('merge', out, one, '--no-fsync')).stdout).toMatch(/^1 file, 4 tensors, 4\.0 KiB in /);
  expect(await bytesOf(one)).toEqual(expected);
  expect([...(await SafeTensorsMetadata.fromFile(one)).metadata]).toEqual([['format', 'pt']]);
  expect(readdirSync(folder).filter((name) => name.startsWith('.'))).toEqual([]);
});

test('merge writes what a link leads to, and refuses a folder', async () => {
  const other = join(folder, 'other');
  mkdirSync(other);
  writeFileSync(join(other, 'real.safetensors'), 'old');
  symlinkSync('other/real.safetensors', join(folder, 'link.safetensors'));
  await runCli('merge', source, join(folder, 'link.safetensors'));
  expect(lstatSync(join(folder, 'link.safetensors')).isSymbolicLink()).toBe(true);
  expect(await bytesOf(join(other, 'real.safetensors'))).toEqual(expected);
  expect(readdirSync(other)).toEqual(['real.safetensors']);
  const { stderr, exitCode } = await runCli('merge', source, other);
  expect([stderr, exitCode]).toEqual([expect.stringMatching(/^error: IO_ERROR: .*found a folder/), 1]);
});

test('convert writes floating tensors as another dtype, others as they are', async () => {
  const file = join(folder, 'f32.safetensors');
  await runCli('convert', source, file, '--dtype', 'F32');
  const converted = await bytesOf(file);
  expect(converted['h.0.w']![0]).toBe('F32');
  // Back: BF16 fits into F32.
  await runCli('convert', file, out, '--dtype', 'BF16', '--max-shard-bytes', '3KiB');
  expect(readdirSync(out).length).toBe(3);
  expect(await bytesOf(out)).toEqual(expected);
});

test('--include and --exclude choose tensors by pattern; a pattern that none has is an error', async () => {
  const { stdout } = await runCli('reshard', source, out, '--include', 'h.*', '--exclude', '*.ids', '--json');
  expect(JSON.parse(stdout)).toMatchObject({ tensors: 2, leftOut: 2 });
  expect(Object.keys(await bytesOf(out)).sort()).toEqual(['h.0.w', 'h.1.w']);
  for (const args of [
    ['--include', 'h.9*'],
    ['--exclude', '*'],
    ['--exclude', 'hxw'],
  ]) {
    const { stderr, exitCode } = await runCli('merge', source, join(folder, 'none.safetensors'), ...args);
    expect([stderr, exitCode]).toEqual([
      expect.stringMatching(/^error: INVALID_ARGUMENT: --(in|ex)clude: no tensor/),
      1,
    ]);
  }
});

test.each(['0', '-1', '5XB', 'much'])('--max-shard-bytes %s is refused', async (size) => {
  const { stderr, exitCode } = await runCli('reshard', source, out, '--json', `--max-shard-bytes=${size}`);
  expect([JSON.parse(stderr).error.code, exitCode]).toEqual(['INVALID_ARGUMENT', 1]);
});
