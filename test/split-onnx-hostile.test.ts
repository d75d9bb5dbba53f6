import { existsSync } from 'node:fs';
import { mkdir, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { FastSafetensorsError } from '../src/base/errors.js';
import { MODEL, TENSOR } from '../src/models/onnx/schema.js';
import { splitOnnx } from '../src/models/onnx/split.js';
import {
  addModel,
  bytesOf,
  externalTensor,
  floats,
  graph,
  message,
  model,
  node,
  rawTensor,
  TYPES,
  tensor,
} from './support/onnx-model.js';
import { folder, W, write } from './support/split-onnx.js';

describe('hostile and broken models', () => {
  test('cut short at any byte', async () => {
    const whole = addModel(tensor('w', [16], TYPES.F32, { [TENSOR.rawData]: bytesOf(floats(16)) }));
    const path = await write(whole);
    expect((await splitOnnx(path, { minBytes: 0 })).tensors.length).toBe(1);
    for (let length = 0; length < whole.length; ++length) {
      const cut = await write(whole.subarray(0, length), 'cut.onnx');
      const error = await splitOnnx(cut, { minBytes: 0 }).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      expect(error).toBeInstanceOf(FastSafetensorsError);
      expect((error as FastSafetensorsError).code).toMatch(/^(UNEXPECTED_EOF|INVALID_ARGUMENT)$/);
    }
    expect(existsSync(join(folder, 'cut.split.onnx'))).toBe(false);
  });

  test.each([
    ['text', Buffer.from('{"not": "onnx"}')],
    ['nothing', Buffer.alloc(0)],
    ['zeros', Buffer.alloc(100)],
    ['a safetensors file', Buffer.concat([Buffer.of(2, 0, 0, 0, 0, 0, 0, 0), Buffer.from('{}')])],
    ['a length of 2^31', Buffer.of(8, 8, 58, 255, 255, 255, 255, 7)],
    ['a length past 2^32', Buffer.of(8, 8, 58, 255, 255, 255, 255, 255, 255, 255, 255, 1)],
    ['two graphs', Buffer.from(message({ [MODEL.irVersion]: 8, [MODEL.graph]: ['', ''] }).encode())],
    ['an end of a group that has not begun', Buffer.of(8, 8, 60)],
  ])('%s is no ONNX model', async (_, bytes) => {
    await expect(splitOnnx(await write(bytes))).rejects.toMatchObject({
      name: 'FastSafetensorsError',
      code: expect.stringMatching(/^(UNEXPECTED_EOF|INVALID_ARGUMENT)$/),
    });
  });

  test('a missing file', async () => {
    await expect(splitOnnx(join(folder, 'none.onnx'))).rejects.toMatchObject({
      code: 'IO_ERROR',
      path: join(folder, 'none.onnx'),
    });
  });

  test('graphs nested without end', async () => {
    let body = graph({ nodes: [], outputs: [] });
    for (let depth = 0; depth < 100; ++depth)
      body = graph({ nodes: [node('If', ['c'], ['y'], { then_branch: { graph: body } })], outputs: [] });
    const bytes = message({ [MODEL.irVersion]: 8, [MODEL.graph]: body }).encode();
    await expect(splitOnnx(await write(bytes))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('deeper than 64'),
    });
  });

  test.each([
    ['too few bytes', tensor('w', [512], TYPES.F32, { [TENSOR.rawData]: new Uint8Array(2044) })],
    ['too many bytes', tensor('w', [512], TYPES.F32, { [TENSOR.rawData]: new Uint8Array(2052) })],
    ['no data at all', tensor('w', [512], TYPES.F32, {})],
    ['a negative dimension', tensor('w', [-512], TYPES.F32, { [TENSOR.rawData]: bytesOf(W) })],
    ['dimensions that overflow', tensor('w', [2 ** 40, 2 ** 40], TYPES.F32, { [TENSOR.rawData]: bytesOf(W) })],
    ['half floats of 17 bits', tensor('w', [512], TYPES.F16, { [TENSOR.int32Data]: Array<number>(512).fill(0x10000) })],
  ])('a tensor with %s', async (_, w) => {
    await expect(splitOnnx(await write(addModel(w)))).rejects.toMatchObject({
      code: 'TENSOR_INVALID_INFO',
      tensor: 'w',
    });
    expect(await readdir(folder)).toEqual(['m.onnx']);
  });

  test('one graph with two tensors of one name', async () => {
    const twice = { nodes: [], initializers: [rawTensor('w', [512], W), rawTensor('w', [512], W)], outputs: [] };
    await expect(splitOnnx(await write(model(twice)))).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR', tensor: 'w' });
  });

  describe('external data', () => {
    const inside = () => join(folder, 'models');
    const split = async (entries: Record<string, string>, options = {}) => {
      await mkdir(inside(), { recursive: true });
      await writeFile(join(folder, 'secret.bin'), bytesOf(W));
      await writeFile(join(inside(), 'data.bin'), bytesOf(W));
      await symlink('../secret.bin', join(inside(), 'link.bin'));
      await symlink('data.bin', join(inside(), 'near.bin'));
      const path = join(inside(), 'm.onnx');
      await writeFile(path, addModel(externalTensor('w', [512], entries)));
      return splitOnnx(path, options);
    };

    test.each([
      '../secret.bin',
      '../none.bin',
      'sub/../../secret.bin',
      '/etc/passwd',
      'file:///etc/passwd',
      'C:\\secret.bin',
      '..\\secret.bin',
      'data.bin\0',
      '',
      '.',
      '%2e%2e/secret.bin',
      '%252e%252e%252fsecret.bin',
    ])('in %j is refused', async (location) => {
      for (const followLinks of [true, false]) {
        const refused = split({ location }, { followLinks });
        await expect(refused).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH', tensor: 'w' });
        expect(existsSync(join(inside(), 'm.safetensors'))).toBe(false);
        await rm(inside(), { recursive: true });
      }
    });

    test.each([
      [{ location: 'none.bin' }, 'MISSING_SHARD'],
      [{ location: 'data.bin', offset: '4' }, 'UNEXPECTED_EOF'],
      [{ location: 'data.bin', offset: '9007199254740992' }, 'TENSOR_INVALID_INFO'],
      [{ location: 'data.bin', offset: '-4' }, 'TENSOR_INVALID_INFO'],
      [{ location: 'data.bin', offset: '1e3' }, 'TENSOR_INVALID_INFO'],
      [{ location: 'data.bin', length: '2044' }, 'TENSOR_INVALID_INFO'],
      [{ offset: '0' }, 'TENSOR_INVALID_INFO'],
    ])('as %j is refused with %s', async (entries, code) => {
      await expect(split(entries as Record<string, string>)).rejects.toMatchObject({ code, tensor: 'w' });
    });

    test('behind a link is read; without followLinks only if it stays in the folder', async () => {
      const refused = split({ location: 'link.bin' }, { followLinks: false });
      await expect(refused).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH', tensor: 'w' });
      expect(existsSync(join(inside(), 'm.safetensors'))).toBe(false);
      await rm(inside(), { recursive: true });
      expect((await split({ location: 'link.bin' })).bytes).toBe(2048);
      await rm(inside(), { recursive: true });
      expect((await split({ location: 'near.bin' }, { followLinks: false })).bytes).toBe(2048);
    });
  });
});
