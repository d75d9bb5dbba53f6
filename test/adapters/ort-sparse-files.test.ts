/** @jest-environment ./test/support/native-arrays-environment.js */
import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { bytesOf, externalTensor, floats, model, node, value } from '../support/onnx-model.js';
import { adding, f32, folder, hole, run, save, write, x } from '../support/ort-weights.js';

// Compressing and network file systems, and cp --sparse, store zeros as holes: those are weights. A file that is
// nothing but a hole is a placeholder.

const MIB = 1 << 20;

/** A file of holes, but for some bytes. */
async function sparse(name: string, length: number, at: number, bytes: Uint8Array): Promise<string> {
  await hole(name, length);
  const path = join(folder, name);
  const handle = await open(path, 'r+');
  await handle.write(bytes, 0, bytes.length, at);
  await handle.close();
  const { blocks, size } = await stat(path);
  expect(blocks * 512).toBeLessThan(size); // else this file system shows nothing here
  return path;
}

/** y = x + v + w, both external data of one file. */
const addingTwo = (location: string, vAt: number, wAt: number) =>
  model({
    nodes: [node('Add', ['x', 'v'], ['t']), node('Add', ['t', 'w'], ['y'])],
    initializers: [
      externalTensor('v', [512], { location, offset: `${vAt}`, length: '2048' }),
      externalTensor('w', [512], { location, offset: `${wAt}`, length: '2048' }),
    ],
    inputs: [value('x', [512])],
    outputs: [value('y', [512])],
  });

test('a tensor of zeros in a sparse file is a weight', async () => {
  await sparse('w.bin', MIB, MIB - 4096, bytesOf(floats(512, 2)));
  const path = await write(addingTwo('w.bin', MIB - 4096, 65536));
  expect(await run(await createSession(ort, path))).toEqual(floats(512, 3));
});

test('also where the rest of the weights is given', async () => {
  await sparse('w.bin', MIB, MIB - 4096, bytesOf(floats(512, 2)));
  const path = await write(addingTwo('w.bin', MIB - 4096, 65536));
  const weights = await save([f32('v', floats(512, 4))], 'weights.safetensors');
  const session = await createSession(ort, path, { weights, allowUnmatched: true });
  expect(session.unmatched).toEqual({ model: ['w'], weights: [] });
  expect(await run(session)).toEqual(floats(512, 5));
});

test('also when all weights that the model takes from the file are zeros', async () => {
  await sparse('w.bin', MIB, MIB - 1, Uint8Array.of(1));
  expect(await run(await createSession(ort, await write(adding('w.bin'))))).toEqual(floats(512));
});

test('a file that was written, all zeros, is no hole', async () => {
  const handle = await open(join(folder, 'w.bin'), 'w');
  await handle.write(new Uint8Array(MIB));
  await handle.close();
  expect(await run(await createSession(ort, await write(adding('w.bin'))))).toEqual(floats(512));
});

test('a .safetensors file whose tensors of zeros are holes', async () => {
  const saved = await save([f32('v', floats(512, 2)), f32('w', new Float32Array(MIB))], 'full.safetensors');
  const handle = await open(saved, 'r');
  const { size } = await handle.stat();
  const start = Buffer.alloc(65536);
  await handle.read(start, 0, start.length, 0);
  await handle.close();
  const weights = await sparse('m.safetensors', size, 0, start);
  const bytes = model({
    nodes: [node('Slice', ['w', 'from', 'to'], ['s']), node('Add', ['x', 's'], ['t']), node('Add', ['t', 'v'], ['y'])],
    initializers: [
      externalTensor('v', [512], { location: 'gone', offset: '0', length: '2048' }),
      externalTensor('w', [MIB], { location: 'gone', offset: '0', length: `${4 * MIB}` }),
    ],
    inputs: [value('x', [512]), value('from', [1], 7), value('to', [1], 7)],
    outputs: [value('y', [512])],
  });
  const session = await createSession(ort, bytes, { weights });
  const at = (n: number) => new ort.Tensor('int64', BigInt64Array.of(BigInt(n)), [1]);
  expect(await run(session, { x: x(), from: at(MIB - 512), to: at(MIB) })).toEqual(floats(512, 3));
});

test('nothing but a hole is a placeholder, and the error says which file', async () => {
  await hole('w.bin', MIB);
  await expect(createSession(ort, await write(adding('w.bin')))).rejects.toMatchObject({
    code: 'UNKNOWN_TENSOR',
    tensor: 'w',
    path: join(folder, 'w.bin'),
    message: expect.stringMatching(/a hole.*"w".*option weights/),
  });
});
