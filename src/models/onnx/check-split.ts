/** The check of what `split-onnx` wrote: `--check`. */
import { FastSafetensorsError } from '../../base/errors.js';
import { openRegularFile, readAt } from '../../base/regular-file.js';
import { SafeTensorsMetadata } from '../../safetensors/metadata.js';
import { parseModel } from './graph.js';
import { readModel } from './model-file.js';
import type { LiftedTensor, OnnxSplitReport } from './split.js';
import { readTensorBytes } from './tensor-proto.js';

/**
 * Reads both files of a split again and compares every lifted tensor with the original model, byte for byte, where the
 * new graph or the header of the weights file places it. Returns the bytes compared. Rejects with CHECKSUM_MISMATCH
 * naming the first tensor that differs.
 */
export async function checkOnnxSplit(report: OnnxSplitReport): Promise<number> {
  const original = parseModel(await readModel(report.model), report.model, report.minBytes);
  const lifted = original.weights.filter((weight) => weight.stays === undefined);
  if (lifted.length !== report.tensors.length) {
    const message = `${report.model}: has ${lifted.length} weights to lift, but ${report.tensors.length} were lifted`;
    throw new FastSafetensorsError('FILE_CHANGED', message, { path: report.model });
  }
  const readLifted = report.mode === 'inputs' ? await byHeader(report) : await byGraph(report);
  let bytes = 0;
  for (const [index, weight] of lifted.entries()) {
    const tensor = report.tensors[index]!;
    const expected = await readTensorBytes(weight.tensor, weight.info, report.model);
    if (Buffer.compare(await readLifted(tensor), expected) !== 0) {
      const source = `"${tensor.modelName}" in ${report.model}`;
      const message = `${report.weights}: tensor "${tensor.name}" differs from ${source}`;
      throw new FastSafetensorsError('CHECKSUM_MISMATCH', message, { path: report.weights, tensor: tensor.name });
    }
    bytes += expected.length;
  }
  return bytes;
}

/** Reads a lifted tensor where the new graph tells a runtime to. */
async function byGraph(report: OnnxSplitReport) {
  const graph = parseModel(await readModel(report.graph), report.graph, 0);
  const weights = graph.weights.filter(({ info }) => info.external);
  const outside = new Map(weights.map((weight) => [`${weight.graph.path}\0${weight.info.name}`, weight]));
  return async (tensor: LiftedTensor): Promise<Uint8Array> => {
    const weight = outside.get(`${tensor.graph}\0${tensor.modelName}`);
    if (weight === undefined) throw unknown(report.graph, tensor, 'is no external tensor');
    return readTensorBytes(weight.tensor, weight.info, report.graph);
  };
}

/** Reads a lifted tensor where the header of the weights file places it. */
async function byHeader(report: OnnxSplitReport) {
  const header = await SafeTensorsMetadata.fromFile(report.weights);
  return async (tensor: LiftedTensor): Promise<Uint8Array> => {
    const frame = header.get(tensor.name);
    if (frame === undefined) throw unknown(report.weights, tensor, 'is missing');
    const [begin, end] = frame.dataOffsets;
    const handle = await openRegularFile(report.weights);
    try {
      const bytes = Buffer.alloc(end - begin);
      return bytes.subarray(0, await readAt(handle, bytes, header.dataStart + begin));
    } finally {
      await handle.close();
    }
  };
}

function unknown(path: string, { name }: LiftedTensor, what: string): FastSafetensorsError {
  return new FastSafetensorsError('UNKNOWN_TENSOR', `${path}: tensor "${name}" ${what}`, { path, tensor: name });
}
