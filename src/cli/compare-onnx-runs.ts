/** The check of a split by running both models: `split-onnx --check`. */
import type * as Ort from 'onnxruntime-node';
import { createSession } from '../../adapters/ort/index.js';
import { elementOfType, type Loose, numberOfName } from '../../adapters/ort/types.js';
import { FastSafetensorsError } from '../base/errors.js';
import { listed } from '../base/listed.js';
import { Allocation } from '../device/allocation.js';
import { Device } from '../device/device.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { SafeTensorsFileLoader } from '../loaders/file-loader.js';
import { compareOutputs, type Difference } from '../models/onnx/compare-outputs.js';
import { randomElements, randomTexts } from '../models/onnx/random-elements.js';
import { dtypeOf } from '../models/onnx/schema.js';
import type { OnnxSplitReport } from '../models/onnx/split.js';

/** The result of compareRuns. */
export interface Comparison extends Difference {
  /** Shapes of the random inputs of both models. */
  readonly inputs: Readonly<Record<string, readonly number[]>>;
  /** Outputs that are no tensors, or of a type that JavaScript has none of. */
  readonly notCompared: readonly string[];
  /** Why onnxruntime-node alone cannot open the new graph, where createSession can; null where both can. */
  readonly needsCreateSession: string | null;
}

const QUIET = { logSeverityLevel: 3 } as const;
type Session = Awaited<ReturnType<typeof createSession<typeof Ort>>>;
type Feed = Ort.Tensor | DeviceTensor;

/**
 * Runs the original and the new model on the same random inputs, of whatever type, and compares their outputs. That
 * onnxruntime-node opens the new graph by itself is tried, too, unless the graph has an input or output of a type that
 * it has no name for. An input whose shape is not in `shapes` has 1 for each dimension that the model leaves open.
 * Rejects with UNSUPPORTED_DTYPE for an input or weight that cannot be fed and when no output can be compared, and with
 * the runtime's error when a model does not run on such inputs.
 */
export async function compareRuns(
  ort: typeof Ort,
  report: OnnxSplitReport,
  shapes: Readonly<Record<string, readonly number[]>> = {},
): Promise<Comparison> {
  const made: DeviceTensor[] = [];
  const sessions: Session[] = [];
  const open = async (model: string): Promise<Session> => {
    const session = await createSession(ort, model, { sessionOptions: QUIET });
    sessions.push(session);
    return session;
  };
  try {
    const original = await open(report.model);
    const feeds: Record<string, Feed> = Object.create(null); // an input may be called __proto__
    const inputs: Record<string, readonly number[]> = Object.create(null);
    refuseUnknownNames(shapes, original.inputNames, report.model);
    for (const input of original.inputMetadata) {
      if (!input.isTensor) throw noTensor(report.model, input.name);
      const given = Object.hasOwn(shapes, input.name) ? shapes[input.name] : undefined;
      const dims = given ?? input.shape.map((dim) => (typeof dim === 'number' ? dim : 1));
      inputs[input.name] = dims;
      feeds[input.name] = await randomTensor(ort, input.name, input.type, dims, made);
    }
    const split = await open(report.graph);
    const needsCreateSession = await openAlone(ort, report.graph, split);
    const weights = report.mode === 'inputs' ? await weightFeeds(ort, split, report.weights, made) : {};

    const names = original.outputMetadata.filter(isOfJavaScript).map(({ name }) => name);
    const notCompared = original.outputNames.filter((name) => !names.includes(name));
    if (names.length === 0) {
      const message = `${report.model}: no output is of a type that can be compared`;
      throw new FastSafetensorsError('UNSUPPORTED_DTYPE', message);
    }
    const run = (session: Session, given: Record<string, Feed>) => session.run(given as Loose, names);
    const found = await run(split, { ...feeds, ...weights });
    const expected = await run(original, feeds);
    const dtypes = report.tensors.map(({ dtype }) => dtype);
    return { ...compareOutputs(found, expected, dtypes), inputs, notCompared, needsCreateSession };
  } finally {
    for (const session of sessions) await session.release();
    for (const tensor of made) tensor.dispose();
  }
}

/** Whether onnxruntime-node has a tensor type for it. */
function isOfJavaScript(value: Ort.InferenceSession.ValueMetadata): boolean {
  return value.isTensor && (value.type === 'string' || elementOfType(value.type) !== undefined);
}

/** Opens the graph as users without this package do. Returns why that fails where no graph of such types opens. */
async function openAlone(ort: typeof Ort, graph: string, session: Session): Promise<string | null> {
  try {
    await (await ort.InferenceSession.create(graph, QUIET)).release();
    return null;
  } catch (error) {
    const other = [...session.inputMetadata, ...session.outputMetadata].find(
      (value) => value.isTensor && !isOfJavaScript(value),
    );
    if (!other?.isTensor) throw error;
    return `"${other.name}" is ${other.type}`;
  }
}

/** A misspelled name would leave the input that was meant at its own shape. */
function refuseUnknownNames(shapes: object, names: readonly string[], model: string): void {
  const unknown = Object.keys(shapes).find((name) => !names.includes(name));
  if (unknown === undefined) return;
  const message = `${model} has no input "${unknown}"; its inputs are ${listed(names)}`;
  throw new FastSafetensorsError('INVALID_ARGUMENT', message);
}

function noTensor(model: string, input: string): FastSafetensorsError {
  const message = `${model}: input "${input}" is a sequence or a map, and only tensors can be made at random`;
  return new FastSafetensorsError('INVALID_ARGUMENT', message, { tensor: input });
}

/** What JavaScript has a tensor type for is an ort.Tensor, the rest a tensor of this package, added to `made`. */
async function randomTensor(
  ort: typeof Ort,
  name: string,
  type: string,
  dims: readonly number[],
  made: DeviceTensor[],
): Promise<Feed> {
  const count = dims.reduce((product, size) => product * size, 1);
  if (type === 'string') return new ort.Tensor('string', randomTexts(count), dims);
  const number = numberOfName(type);
  const bytes = number === undefined ? undefined : randomElements(number, count);
  const element = elementOfType(type);
  if (bytes && element) return new ort.Tensor(element.type as 'uint8', new element.array(bytes.buffer) as never, dims);
  const dtype = number === undefined ? undefined : dtypeOf(number);
  if (!bytes || !dtype) {
    const message = `no random values for input "${name}" of type ${type}`;
    throw new FastSafetensorsError('UNSUPPORTED_DTYPE', message, { tensor: name });
  }
  const cpu = Device.parse('cpu');
  const tensor = await Allocation.during(cpu, Math.max(bytes.length, 1), async (allocation) => {
    await allocation.write(0, bytes);
    return new DeviceTensor(name, dtype, dims, bytes.length, cpu, allocation, 0);
  });
  made.push(tensor);
  return tensor;
}

/** The weights of a graph that takes them as inputs, of all types that a session can be fed. */
async function weightFeeds(
  ort: typeof Ort,
  session: Session,
  path: string,
  made: DeviceTensor[],
): Promise<Record<string, Feed>> {
  const loader = new SafeTensorsFileLoader();
  try {
    await loader.addFilenames(path);
    const buffer = await loader.copyFilesToDevice();
    const types = new Map(session.inputMetadata.map((input) => [input.name, input]));
    const feeds: Record<string, Feed> = Object.create(null);
    for (const name of buffer.keys()) {
      const tensor = await buffer.getTensor(name);
      made.push(tensor);
      const input = types.get(name);
      const isPacked = input?.isTensor && ['int4', 'uint4'].includes(input.type);
      feeds[name] = isPacked ? packed(ort, tensor, input.type as 'int4', input.shape as number[]) : tensor;
    }
    await buffer.close();
    return feeds;
  } finally {
    await loader.close();
  }
}

/** A tensor of 4-bit integers, which lie in bytes in the file. */
function packed(ort: typeof Ort, { data }: DeviceTensor, type: 'int4' | 'uint4', dims: readonly number[]): Ort.Tensor {
  return new ort.Tensor(type as 'uint4', Uint8Array.from(data as Uint8Array), dims);
}
