/** The check of what `split-onnx` wrote: `--check`. */
import { FastSafetensorsError } from '../../base/errors.js';
import { openRegularFile, readAt, readAtSync } from '../../base/regular-file.js';
import { SafeTensorsMetadata } from '../../safetensors/metadata.js';
import { parseModel } from './graph.js';
import { readModel } from './model-file.js';
import type { LiftedTensor, OnnxSplitReport } from './split.js';
import { SMALL_BYTES, TensorReader } from './tensor-reader.js';

/**
 * Reads both files of a split again and compares every lifted tensor with the original model, byte for byte, where the
 * new graph or the header of the weights file places it. Returns the bytes compared. Rejects with CHECKSUM_MISMATCH
 * naming the first tensor that differs.
 */
export async function checkOnnxSplit(report: OnnxSplitReport): Promise<number> {
  const model = parseModel(await readModel(report.model), report.model, report.minBytes);
  const lifted = model.weights.filter((weight) => weight.stays === undefined);
  if (lifted.length !== report.tensors.length) {
    const message = `${report.model}: has ${lifted.length} weights to lift, but ${report.tensors.length} were lifted`;
    throw new FastSafetensorsError('FILE_CHANGED', message, { path: report.model });
  }
  const original = new TensorReader(report.model);
  const split = await (report.mode === 'inputs' ? byHeader(report) : byGraph(report));
  let bytes = 0;
  try {
    for (const [index, weight] of lifted.entries()) {
      const tensor = report.tensors[index]!;
      const expected = await original.read(weight.tensor, weight.info);
      if (Buffer.compare(await split.read(tensor), expected) !== 0) {
        const source = `"${tensor.modelName}" in ${report.model}`;
        const message = `${report.weights}: tensor "${tensor.name}" differs from ${source}`;
        throw new FastSafetensorsError('CHECKSUM_MISMATCH', message, { path: report.weights, tensor: tensor.name });
      }
      bytes += expected.length;
    }
    return bytes;
  } finally {
    await original.close();
    await split.close();
  }
}

/** Reads lifted tensors from what was written. */
interface SplitReader {
  read(tensor: LiftedTensor): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** Reads a lifted tensor where the new graph tells a runtime to. */
async function byGraph(report: OnnxSplitReport): Promise<SplitReader> {
  const graph = parseModel(await readModel(report.graph), report.graph, 0);
  const weights = graph.weights.filter(({ info }) => info.external);
  const outside = new Map(weights.map((weight) => [`${weight.graph.path}\0${weight.info.name}`, weight]));
  const reader = new TensorReader(report.graph);
  return {
    async read(tensor) {
      const weight = outside.get(`${tensor.graph}\0${tensor.modelName}`);
      if (weight === undefined) throw unknown(report.graph, tensor, 'is no external tensor');
      return reader.read(weight.tensor, weight.info);
    },
    close: () => reader.close(),
  };
}

/** Reads a lifted tensor where the header of the weights file places it. */
async function byHeader(report: OnnxSplitReport): Promise<SplitReader> {
  const header = await SafeTensorsMetadata.fromFile(report.weights);
  const handle = await openRegularFile(report.weights);
  return {
    async read(tensor) {
      const frame = header.get(tensor.name);
      if (frame === undefined) throw unknown(report.weights, tensor, 'is missing');
      const [begin, end] = frame.dataOffsets;
      const bytes = Buffer.alloc(end - begin);
      const at = header.dataStart + begin;
      const isSmall = bytes.length <= SMALL_BYTES;
      return bytes.subarray(0, isSmall ? readAtSync(handle, bytes, at) : await readAt(handle, bytes, at));
    },
    close: () => handle.close(),
  };
}

function unknown(path: string, { name }: LiftedTensor, what: string): FastSafetensorsError {
  return new FastSafetensorsError('UNKNOWN_TENSOR', `${path}: tensor "${name}" ${what}`, { path, tensor: name });
}
