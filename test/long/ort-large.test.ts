/** @jest-environment ./test/support/native-arrays-environment.js */
import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { nativeMetrics, SafeTensorsMetadata } from '../../src/index.js';
import { writeSparse } from '../support/large-model.js';
import { externalTensor, model, node, TYPES, value } from '../support/onnx-model.js';
import { collectedMetrics, NOTHING_HELD, testFolder } from '../support/tensor-files.js';

const folder = testFolder();
const COLUMNS = 16384;
/** 2.5 GiB in one tensor, and 1 GiB. */
const ROWS = { w0: 40960, w1: 16384 };
const BYTES = (ROWS.w0 + ROWS.w1) * COLUMNS * 4;

async function write(): Promise<{ path: string; weights: string }> {
  mkdirSync(join(folder, 'm'), { recursive: true });
  const weights = writeSparse(join(folder, 'm', 'large.safetensors'), ROWS);
  const header = await SafeTensorsMetadata.fromFile(weights);
  const initializers = Object.entries(ROWS).map(([name, rows]) => {
    const [begin, end] = header.get(name)!.dataOffsets;
    return externalTensor(name, [rows, COLUMNS], {
      location: basename(weights),
      offset: String(header.packed.dataStart + begin),
      length: String(end - begin),
    });
  });
  const bytes = model({
    nodes: [node('Gather', ['w0', 'i0'], ['a']), node('Gather', ['w1', 'i1'], ['b']), node('Add', ['a', 'b'], ['y'])],
    initializers,
    inputs: [value('i0', [1], TYPES.I64), value('i1', [1], TYPES.I64)],
    outputs: [value('y', [1, COLUMNS])],
  });
  const path = join(folder, 'm', 'large.onnx');
  writeFileSync(path, bytes);
  return { path, weights };
}

test('weights of 3.5 GiB, one tensor of 2.5 GiB: by path and as bytes, their memory once', async () => {
  const { path, weights } = await write();
  const row = (index: number) => new ort.Tensor('int64', BigInt64Array.of(BigInt(index)), [1]);
  for (const open of [() => createSession(ort, path), () => createSession(ort, readFileSync(path), { weights })]) {
    const before = process.memoryUsage().rss;
    const session = await open();
    expect(nativeMetrics().hostBytes).toBe(BYTES);
    const sum = async (i0: number, i1: number) =>
      new Set((await session.run({ i0: row(i0), i1: row(i1) })).y!.data as Float32Array);
    expect([...(await sum(ROWS.w0 - 1, ROWS.w1 - 1))]).toEqual([1 + 2]);
    expect([...(await sum(ROWS.w0 - 1, 0))]).toEqual([1]);
    expect([...(await sum(0, ROWS.w1 - 1))]).toEqual([2]);
    expect(process.memoryUsage().rss - before).toBeLessThan(BYTES * 1.05);
    await session.release();
    expect(await collectedMetrics()).toEqual(NOTHING_HELD);
  }
});

// A protobuf message ends at 2 GiB: such a file is no model, whoever wrote it.
test.each([false, true])('a model file of more than 2 GiB itself is a typed error (as bytes: %s)', async (asBytes) => {
  const path = join(folder, 'huge.onnx');
  const fd = openSync(path, 'w');
  ftruncateSync(fd, 2 ** 31 + 4096);
  closeSync(fd);
  const given = asBytes ? Buffer.alloc(2 ** 31 + 4096) : path;
  await expect(createSession(ort, given)).rejects.toMatchObject({
    code: expect.stringMatching(/^(INVALID_ARGUMENT|ORT_ERROR)$/),
  });
});
