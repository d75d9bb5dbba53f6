/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { splitOnnx } from '../../src/models/onnx/split.js';
import { bytesOf } from '../support/onnx-model.js';
import { adding, f32, folder, run, save, sum, W, write } from '../support/ort-weights.js';

// Models whose files are links, as in the Hugging Face cache: snapshots/<revision>/model.onnx → ../../blobs/<hash>.

/** Puts files of these bytes into blobs/, and links to them under their names into snapshots/r/. */
async function cache(files: Record<string, Uint8Array>): Promise<string> {
  const snapshot = join(folder, 'snapshots', 'r');
  await mkdir(snapshot, { recursive: true });
  await mkdir(join(folder, 'blobs'));
  for (const [i, [name, bytes]] of Object.entries(files).entries()) {
    await writeFile(join(folder, 'blobs', `${i}abc`), bytes);
    await symlink(`../../blobs/${i}abc`, join(snapshot, name));
  }
  return join(snapshot, 'model.onnx');
}

test('a model and its data that are links into a cache make a session', async () => {
  const path = await cache({ 'model.onnx': adding('model.onnx_data'), 'model.onnx_data': bytesOf(W) });
  expect(await run(await createSession(ort, path))).toEqual(sum);
  await expect(createSession(ort, path, { followLinks: false })).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH' });
});

test('data that are a link to another disk make a session, as the model beside links does', async () => {
  await mkdir(join(folder, 'disk'));
  await mkdir(join(folder, 'models'));
  await writeFile(join(folder, 'disk', 'w.bin'), bytesOf(W));
  await symlink(join(folder, 'disk', 'w.bin'), join(folder, 'models', 'model.onnx_data'));
  const path = await write(adding('model.onnx_data'), 'models/model.onnx');
  expect(await run(await createSession(ort, path))).toEqual(sum);
});

test('and as a link to a model elsewhere, with data beside the link', async () => {
  await mkdir(join(folder, 'disk'));
  await mkdir(join(folder, 'models'));
  await writeFile(join(folder, 'models', 'model.onnx_data'), bytesOf(W));
  await write(adding('model.onnx_data'), 'disk/model.onnx');
  await symlink(join(folder, 'disk', 'model.onnx'), join(folder, 'models', 'model.onnx'));
  expect(await run(await createSession(ort, join(folder, 'models', 'model.onnx')))).toEqual(sum);
});

test('split-onnx reads a model and its data through links, and its result runs', async () => {
  const path = await cache({ 'model.onnx': adding('model.onnx_data'), 'model.onnx_data': bytesOf(W) });
  await expect(splitOnnx(path, { followLinks: false })).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH' });
  const { graph, bytes } = await splitOnnx(path);
  expect(bytes).toBe(2048);
  expect(await run(await createSession(ort, graph))).toEqual(sum);
});

test('weights that are a repository of the cache, and a model by its URL', async () => {
  const repository = join(folder, 'models--org--name');
  await mkdir(join(repository, 'snapshots', 'r'), { recursive: true });
  await mkdir(join(repository, 'refs'));
  await writeFile(join(repository, 'refs', 'main'), 'r\n');
  await save([f32('w', W)], 'blob');
  await symlink(join(folder, 'blob'), join(repository, 'snapshots', 'r', 'model.safetensors'));
  const path = await write(adding('gone'));
  for (const weights of [repository, pathToFileURL(repository), pathToFileURL(repository).href]) {
    for (const model of [path, pathToFileURL(path), pathToFileURL(path).href])
      expect(await run(await createSession(ort, model, { weights }))).toEqual(sum);
  }
  const home = process.env.HOME;
  process.env.HOME = folder;
  try {
    expect(await run(await createSession(ort, '~/m.onnx', { weights: '~/models--org--name' }))).toEqual(sum);
  } finally {
    process.env.HOME = home;
  }
});

test('data behind a link to a device, and names that lead out, are refused', async () => {
  await mkdir(join(folder, 'models'));
  await writeFile(join(folder, 'secret'), bytesOf(W));
  await symlink('/dev/zero', join(folder, 'models', 'zero'));
  for (const location of ['zero', '../secret', '%2e%2e/secret', join(folder, 'secret'), 'a\\b', 'a\0b']) {
    const path = await write(adding(location), 'models/m.onnx');
    const refused = { code: 'UNSAFE_SHARD_PATH', tensor: 'w' };
    await expect(createSession(ort, path)).rejects.toMatchObject(refused);
    await expect(splitOnnx(path)).rejects.toMatchObject(refused);
  }
});
