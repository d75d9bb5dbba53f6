import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SafeTensorsMetadata } from '../src/safetensors/metadata.js';

const folder = join(__dirname, '../fixtures/malformed');
const manifest: { file: string; group: string; code: string }[] = JSON.parse(
  readFileSync(join(folder, 'manifest.json'), 'utf8'),
);

const answer = (promise: Promise<SafeTensorsMetadata>) =>
  promise.then(
    () => 'OK',
    (error) => error.code,
  );

describe.each([...new Set(manifest.map((item) => item.group))])('%s', (group) => {
  test.each(manifest.filter((item) => item.group === group).map(({ file, code }) => [file, code]))(
    '%s: %s',
    async (file, code) => {
      const path = join(folder, file);
      expect(await answer(SafeTensorsMetadata.fromFile(path))).toBe(code);
      expect(await answer(SafeTensorsMetadata.fromBuffer(readFileSync(path)))).toBe(code);
    },
  );
});

test('an error names the file, the tensor and the byte', async () => {
  const path = join(folder, 'data-cut-short.safetensors');
  const error = await SafeTensorsMetadata.fromFile(path).catch((caught) => caught);
  expect(error).toMatchObject({ name: 'FastSafetensorsError', path, tensor: 'w', offset: expect.any(Number) });
  expect(error.message.startsWith(`${path}: tensor "w" ends at byte `)).toBe(true);
  expect(error.message).toMatch(/, but the file has \d+/);
});

test('trailing bytes are counted where they are allowed', async () => {
  const path = join(folder, 'trailing-bytes.safetensors');
  const metadata = await SafeTensorsMetadata.fromFile(path, { allowTrailingBytes: true });
  expect(metadata.trailingBytes).toBe(1);
  expect(metadata.get('w')).toMatchObject({ dtype: 'F32', shape: [1], dataOffsets: [0, 4] });
});

test('names and metadata keys of the prototype are names like others', async () => {
  const names = await SafeTensorsMetadata.fromFile(join(folder, 'prototype-names.safetensors'));
  expect(names.keys()).toEqual(['__proto__', 'constructor', 'toString', '']);
  expect(names.get('')!.dataOffsets).toEqual([3, 4]);
  const { metadata } = await SafeTensorsMetadata.fromFile(join(folder, 'metadata-prototype-keys.safetensors'));
  expect([...metadata.keys()]).toEqual(['__proto__', 'constructor', '']);
});

test('Unicode names come over whole', async () => {
  const metadata = await SafeTensorsMetadata.fromFile(join(folder, 'unicode-names.safetensors'));
  expect(metadata.keys()).toEqual(['重み', '😀\0é']);
  expect(metadata.get('😀\0é')!.dataOffsets).toEqual([2, 4]);
});

test('a file cut at any byte is refused', async () => {
  const whole = readFileSync(join(folder, 'names-out-of-order.safetensors'));
  for (let length = 0; length < whole.length; ++length) {
    expect(await answer(SafeTensorsMetadata.fromBuffer(whole.subarray(0, length)))).not.toBe('OK');
  }
  expect(await answer(SafeTensorsMetadata.fromBuffer(whole))).toBe('OK');
});

test('the fixtures are what their generator writes', () => {
  const fresh = mkdtempSync(join(tmpdir(), 'fst-fixtures-'));
  try {
    execFileSync(process.execPath, [join(__dirname, '../fixtures/generate.mjs'), fresh]);
    expect(readdirSync(fresh).sort()).toEqual(readdirSync(folder).sort());
    for (const name of readdirSync(fresh)) {
      expect([name, readFileSync(join(fresh, name)).equals(readFileSync(join(folder, name)))]).toEqual([name, true]);
    }
  } finally {
    rmSync(fresh, { recursive: true });
  }
});
