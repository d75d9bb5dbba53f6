import type * as Ort from 'onnxruntime-node';
import { type DTypeName, typedArrayOf } from '../../base/dtype.js';
import { FastSafetensorsError } from '../../base/errors.js';
import { readRegularFile } from '../../base/regular-file.js';
import { SafeTensorsMetadata } from '../../safetensors/metadata.js';
import { compareOutputs, type Difference } from './compare-outputs.js';
import { noise } from './noise.js';
import type { OnnxSplitReport } from './split.js';

type Runtime = Pick<typeof Ort, 'InferenceSession' | 'Tensor'>;

/** The result of compareRuns. */
export interface Comparison extends Difference {
  /** Shapes of the random inputs of both graphs. */
  readonly inputs: Readonly<Record<string, readonly number[]>>;
}

/**
 * Runs the original and the new graph on the same random inputs and compares their outputs. An input whose shape is not
 * in `shapes` has 1 for each dimension that the model leaves open. Rejects with UNSUPPORTED_DTYPE for an input or
 * weight that cannot be fed, and with the runtime's error when the model does not run on such inputs.
 */
export async function compareRuns(
  ort: Runtime,
  report: OnnxSplitReport,
  shapes: Readonly<Record<string, readonly number[]>> = {},
): Promise<Comparison> {
  const original = await ort.InferenceSession.create(report.model, { logSeverityLevel: 3 });
  const feeds: Record<string, Ort.Tensor> = {};
  for (const input of original.inputMetadata) {
    if (!input.isTensor)
      throw new FastSafetensorsError('INVALID_ARGUMENT', `${report.model}: input "${input.name}" is no tensor`);
    const dims = shapes[input.name] ?? input.shape.map((dim) => (typeof dim === 'number' ? dim : 1));
    feeds[input.name] = randomTensor(ort, input.name, input.type, dims);
  }
  const split = await ort.InferenceSession.create(report.graph, { logSeverityLevel: 3 });
  const weights = report.mode === 'inputs' ? await weightTensors(ort, report.weights) : {};
  const found = await split.run({ ...feeds, ...weights });
  const difference = compareOutputs(found, await original.run(feeds));
  return { ...difference, inputs: Object.fromEntries(Object.entries(feeds).map(([name, { dims }]) => [name, dims])) };
}

const ZERO_OR_ONE = (values: Float32Array) => Uint8Array.from(values, (value) => (value < 0 ? 0 : 1));
/** Random elements by type of input, from numbers between -1 and 1. */
const ELEMENTS: Partial<Record<Ort.Tensor.Type, (values: Float32Array) => Ort.Tensor.DataType>> = {
  float32: (values) => values,
  float64: (values) => Float64Array.from(values),
  int64: (values) => BigInt64Array.from(values, (value) => (value < 0 ? 0n : 1n)),
  int32: (values) => Int32Array.from(ZERO_OR_ONE(values)),
  uint8: ZERO_OR_ONE,
  bool: ZERO_OR_ONE,
};

function randomTensor(ort: Runtime, name: string, type: Ort.Tensor.Type, dims: readonly number[]): Ort.Tensor {
  const elements = ELEMENTS[type];
  if (!elements)
    throw new FastSafetensorsError('UNSUPPORTED_DTYPE', `no random values for input "${name}" of type ${type}`);
  return new ort.Tensor(type, elements(noise(dims.reduce((a, b) => a * b, 1))), dims);
}

const INPUT_TYPES: Partial<Record<DTypeName, Ort.Tensor.Type>> = { F32: 'float32', F64: 'float64', F16: 'float16' };

async function weightTensors(ort: Runtime, path: string): Promise<Record<string, Ort.Tensor>> {
  const header = await SafeTensorsMetadata.fromFile(path);
  const bytes = await readRegularFile(path);
  const tensors: Record<string, Ort.Tensor> = {};
  for (const { name, dtype, shape, dataOffsets } of header) {
    const type = INPUT_TYPES[dtype];
    if (type === undefined) {
      const message = `onnxruntime-node cannot be fed weight "${name}" of type ${dtype}`;
      throw new FastSafetensorsError('UNSUPPORTED_DTYPE', message, { tensor: name });
    }
    const start = header.dataStart;
    // A copy, because the data in the file may not be aligned for their type.
    const { buffer } = Uint8Array.from(bytes.subarray(start + dataOffsets[0], start + dataOffsets[1]));
    tensors[name] = new ort.Tensor(type, new (typedArrayOf(dtype))(buffer) as Float32Array, shape);
  }
  return tensors;
}
