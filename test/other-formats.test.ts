/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { fastsafeOpen, ParallelLoader, SafeTensorsFileLoader, SafeTensorsMetadata } from 'fastsafetensors-node';
import * as ort from 'onnxruntime-node';
import { createSession } from '../adapters/ort/index.js';
import { splitOnnx } from '../src/models/onnx/split.js';
import { readModelJson } from '../src/models/tfjs/model-json.js';
import { splitTfjs } from '../src/models/tfjs/split.js';
import { runCli } from './support/cli.js';
import { encodeFile, newFolder, someEntries, writeModel } from './support/model-files.js';
import { bytesOf, externalTensor, floats, model, node, rawTensor, value } from './support/onnx-model.js';

// Files that are something else than their name says: each reader says what, and what to do, before it talks of
// headers, protobuf or JSON.

const LFS = Buffer.from(
  'version https://git-lfs.github.com/spec/v1\n' +
    'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4976698672\n',
);
const HTML = Buffer.from('<!doctype html>\n<html class=""><head><title>Sign in</title></head></html>');

/** The header of a zip archive's first entry, and something behind it. */
function zip(name: string): Buffer {
  const header = Buffer.alloc(30);
  header.write('PK\x03\x04', 'latin1');
  header.writeUInt16LE(name.length, 26);
  return Buffer.concat([header, Buffer.from(`${name}${'x'.repeat(100)}`)]);
}
const add = model({
  nodes: [node('Add', ['x', 'w'], ['y'])],
  initializers: [rawTensor('w', [512], floats(512))],
  inputs: [value('x', [512])],
  outputs: [value('y', [512])],
});

const FILES: Record<string, [bytes: Uint8Array, says: RegExp]> = {
  'a Git LFS pointer': [LFS, /is a Git LFS pointer instead of the file itself; run `git lfs pull`/],
  'an HTML page': [HTML, /is an HTML page, perhaps what a server answered.*download it again/],
  'an XML page': [Buffer.from('<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>'), /is an XML page/],
  'a JSON error': [Buffer.from('{"error":"Invalid username or password."}'), /is JSON, .*"\{\\"error\\":\\"Invalid/],
  'a PyTorch checkpoint': [zip('archive/data.pkl'), /is a PyTorch checkpoint.*safetensors\.torch\.save_file/],
  'an old PyTorch checkpoint': [Buffer.from('80028a0a6cfc9c46f9206aa850192e80024de903', 'hex'), /is a Python pickle/],
  'NumPy arrays': [zip('w.npy'), /is NumPy arrays \(\.npz\)/],
  'a zip archive': [zip('model.safetensors'), /is a zip archive; unpack it/],
  'a gzip file': [gzipSync(Buffer.alloc(1000, 'x')), /is an archive or compressed file; unpack it/],
  'a GGUF model': [Buffer.concat([Buffer.from('GGUF'), Buffer.alloc(200, 3)]), /is a GGUF model of llama\.cpp/],
  'an ONNX model': [add, /is an ONNX model; .*npx fastsafetensors-node split-onnx/],
  zeros: [Buffer.alloc(100_000), /is nothing but zeros in its first 65536 bytes: room that no download/],
};

let folder: string;
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(() => rm(folder, { recursive: true }));

describe.each(Object.entries(FILES))('%s', (what, [bytes, says]) => {
  test('as a file of weights is NOT_SAFETENSORS for every entry', async () => {
    const path = join(folder, 'model.safetensors');
    await writeFile(path, bytes);
    const expected = { code: 'NOT_SAFETENSORS', path, message: expect.stringMatching(says) };
    for (const files of [path, folder]) {
      await expect(fastsafeOpen(files)).rejects.toMatchObject(expected);
      await expect(new ParallelLoader({ files }).iterateWeights().next()).rejects.toMatchObject(expected);
      await expect(new SafeTensorsFileLoader().addFilenames(files)).rejects.toMatchObject(expected);
      await expect(createSession(ort, add, { weights: files })).rejects.toMatchObject(expected);
      for (const command of ['inspect', 'load'])
        expect((await runCli(command, files)).stderr).toMatch(/^error: NOT_SAFETENSORS: /);
      expect((await runCli('verify', files)).stdout).toMatch(/: NOT_SAFETENSORS: .* is /);
    }
    await expect(SafeTensorsMetadata.fromFile(path)).rejects.toMatchObject(expected);
    await expect(SafeTensorsMetadata.fromBuffer(bytes)).rejects.toMatchObject({ code: 'NOT_SAFETENSORS' });
  });

  test('as an index, a model.json or an ONNX model says so, too', async () => {
    await writeModel(folder, someEntries());
    const index = join(folder, 'model.safetensors.index.json');
    await writeFile(index, bytes);
    // What is JSON or an ONNX model, but not the right one, is told by the reader of those.
    const invalid = (code: string, own: string) => ({
      code,
      message: what === own ? expect.anything() : expect.stringMatching(says.source.replace(/^is /, '')),
    });
    for (const files of [index, folder])
      await expect(fastsafeOpen(files)).rejects.toMatchObject(invalid('INVALID_INDEX', 'a JSON error'));
    await expect(readModelJson(index)).rejects.toMatchObject(invalid('INVALID_INDEX', 'a JSON error'));
    if (what === 'an ONNX model') return;
    await expect(splitOnnx(index)).rejects.toMatchObject(invalid('INVALID_ARGUMENT', ''));
    await expect(createSession(ort, index)).rejects.toMatchObject(invalid('INVALID_ARGUMENT', ''));
    await expect(createSession(ort, bytes)).rejects.toMatchObject(invalid('INVALID_ARGUMENT', ''));
  });
});

test('a model that is too large to be parsed here, and is none', async () => {
  for (const [name, bytes, length] of [
    ['a.gguf', FILES['a GGUF model']![0], 300e6],
    ['b.gguf', FILES['a GGUF model']![0], 3e9],
    ['model.safetensors', encodeFile(someEntries()), 300e6],
  ] as const) {
    const path = join(folder, name);
    await writeFile(path, bytes);
    await truncate(path, length); // a sparse file: nothing is written
    const refused = {
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/an ONNX model, but it is a (GGUF|\.safe)/),
    };
    await expect(createSession(ort, path)).rejects.toMatchObject(refused);
    if (length > 2 ** 31) await expect(splitOnnx(path)).rejects.toMatchObject(refused);
  }
});

test('an empty file keeps its codes and says that it is empty', async () => {
  const path = join(folder, 'model.safetensors');
  await writeFile(path, '');
  const empty = { message: expect.stringMatching(/is empty.* failed, get it again|empty; its download/) };
  await expect(fastsafeOpen(path)).rejects.toMatchObject({ code: 'HEADER_TOO_SMALL', ...empty });
  await writeFile(join(folder, 'x.json'), '');
  await expect(fastsafeOpen(join(folder, 'x.json'))).rejects.toMatchObject({ code: 'INVALID_INDEX', ...empty });
  await expect(readModelJson(path)).rejects.toMatchObject({ code: 'INVALID_INDEX', ...empty });
  await expect(splitOnnx(path)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', ...empty });
});

test('external data that are a Git LFS pointer', async () => {
  const external = model({
    nodes: [node('Add', ['x', 'w'], ['y'])],
    initializers: [externalTensor('w', [512], { location: 'model.onnx_data', offset: '0', length: '2048' })],
    inputs: [value('x', [512])],
    outputs: [value('y', [512])],
  });
  const path = join(folder, 'model.onnx');
  await writeFile(path, external);
  await writeFile(join(folder, 'model.onnx_data'), LFS);
  const refused = { code: 'UNEXPECTED_EOF', message: expect.stringContaining('git lfs pull') };
  await expect(splitOnnx(path)).rejects.toMatchObject(refused);
  await expect(createSession(ort, path)).rejects.toMatchObject(refused);
  await writeFile(join(folder, 'model.onnx_data'), bytesOf(floats(511))); // real, but short
  const short = { code: 'UNEXPECTED_EOF', message: expect.not.stringContaining('it is') };
  await expect(splitOnnx(path)).rejects.toMatchObject(short);
});

test('shards of a TensorFlow.js model that are Git LFS pointers', async () => {
  await mkdir(join(folder, 'm'));
  const path = join(folder, 'm', 'model.json');
  const weights = [{ name: 'w', shape: [512], dtype: 'float32' }];
  await writeFile(path, JSON.stringify({ modelTopology: {}, weightsManifest: [{ paths: ['w.bin'], weights }] }));
  await writeFile(join(folder, 'm', 'w.bin'), LFS);
  const refused = { code: 'UNEXPECTED_EOF', message: expect.stringMatching(/git lfs pull.*w\.bin/) };
  await expect(splitTfjs(path)).rejects.toMatchObject(refused);
});
