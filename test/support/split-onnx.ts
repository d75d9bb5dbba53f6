import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { Message } from '../../src/models/onnx/protobuf.js';
import { MODEL } from '../../src/models/onnx/schema.js';
import { floats } from './onnx-model.js';

// Models that tests split, what is in the files after that, and runs of either.

/** A new one for each test. */
export let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'split-onnx-'));
});
afterEach(() => rm(folder, { recursive: true }));

export const write = async (bytes: Uint8Array, name = 'm.onnx') => {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
};

export async function infer(file: string, feeds: Record<string, ort.Tensor>) {
  const session = await ort.InferenceSession.create(file, { logSeverityLevel: 3 });
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

/** A weight of 512 floats, and an input as long. */
export const W = floats(512);
export const x = () => new ort.Tensor('float32', floats(512, 0.5), [512]);
export const graphOf = async (path: string) => new Message(await readFile(path), path).child(MODEL.graph)!;

/** Where tensors start in a .safetensors file, and their offsets from there. */
export async function layout(path: string) {
  const bytes = await readFile(path);
  const start = 8 + Number(bytes.readBigUInt64LE());
  const { __metadata__: metadata, ...entries } = JSON.parse(bytes.toString('utf8', 8, start));
  type Entries = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  return { bytes, start, metadata: metadata as Record<string, string>, entries: Object.entries(entries as Entries) };
}

/** Turns all weights into zeros. */
export async function blank(path: string) {
  const { bytes, start } = await layout(path);
  const handle = await open(path, 'r+');
  await handle.write(Buffer.alloc(bytes.length - start), 0, bytes.length - start, start);
  await handle.close();
}

/** What is in a .safetensors file. */
export async function readTensors(path: string) {
  const { bytes, start, metadata, entries } = await layout(path);
  const tensors = entries.map(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [begin, end],
      },
    ]) => [name, { dtype, shape, data: bytes.subarray(start + begin, start + end) }] as const,
  );
  return { metadata, tensors: new Map(tensors) };
}
