/** The check of what `split-tfjs` wrote: `--check`. */
import type { FileHandle } from 'node:fs/promises';
import { FastSafetensorsError } from '../../base/errors.js';
import { openRegularFile, readAt } from '../../base/regular-file.js';
import { readShards } from '../../safetensors/shards.js';
import { readModelJson } from './model-json.js';
import { shardWeights } from './shard-weights.js';
import type { TfjsSplitReport } from './split.js';

const PIECE = 64 * 1024 * 1024;

/**
 * Reads the model's shards and the files of its split again and compares every weight: dtype, shape and each byte.
 * Returns the bytes compared. Rejects with CHECKSUM_MISMATCH naming the first weight that differs.
 */
export async function checkTfjsSplit(report: TfjsSplitReport): Promise<number> {
  const shards = await readShards(report.weights, { index: 'strict' });
  const original = await readModelJson(report.model);
  const handles: FileHandle[] = [];
  let bytes = 0;
  let weights = 0;
  try {
    for (const { path } of shards.metadata) handles.push(await openRegularFile(path));
    for await (const { spec, dtype, shape, byteLength, read } of shardWeights(original)) {
      const differs = (what: string) => mismatch(report, `"${spec.name}" ${what}`, spec.name);
      const file = shards.fileOf(spec.name);
      const frame = file === undefined ? undefined : shards.metadata[file]!.get(spec.name);
      if (!frame) throw differs('is missing');
      if (frame.dtype !== dtype || String(frame.shape) !== String(shape)) {
        throw differs(`is ${frame.dtype} [${frame.shape}], expected ${dtype} [${shape}]`);
      }
      const start = shards.metadata[file!]!.dataStart + frame.dataOffsets[0];
      for (let at = 0; at < byteLength; at += PIECE) {
        const length = Math.min(PIECE, byteLength - at);
        const found = Buffer.alloc(length);
        await readAt(handles[file!]!, found, start + at);
        if (!found.equals(await read(at, length))) throw differs(`differs within bytes ${at} to ${at + length}`);
      }
      bytes += byteLength;
      ++weights;
    }
  } finally {
    await Promise.all(handles.map((handle) => handle.close()));
  }
  const stored = shards.metadata.reduce((sum, file) => sum + file.tensorCount, 0);
  if (stored === weights) return bytes;
  throw mismatch(report, `has ${stored} tensors, expected ${weights}`);
}

function mismatch({ weights: path }: TfjsSplitReport, what: string, tensor?: string): FastSafetensorsError {
  return new FastSafetensorsError('CHECKSUM_MISMATCH', `${path}: ${what}`, { path, tensor });
}
