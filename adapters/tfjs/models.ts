import { boolean, callback, checkOptions, takesAtMost } from '../../src/base/checks.js';
import { InvalidArgumentError } from '../../src/base/errors.js';
import type { LoadReport } from '../../src/loaders/load-report.js';
import {
  artifactsOf,
  checkFormat,
  LOADABLE_NAMES,
  readModelJson,
  type TfjsModel,
  weightsOf,
} from '../../src/models/tfjs/model-json.js';
import type { Files } from '../../src/safetensors/files.js';
import { Adopter } from './framework.js';
import { placeholderInitializers } from './placeholder.js';
import { checkTensorFlow, type Loose, type TensorFlowModels } from './tensorflow.js';
import {
  DECIDED,
  decodeStrings,
  iterateWeights,
  WEIGHT_CHECKS,
  type WeightNames,
  type WeightOptions,
  watchOf,
} from './weights.js';

/** Options of loadGraphModel: those of loaders, and these. */
export interface ModelOptions extends WeightOptions {
  /** The .safetensors files of the weights; default: those that split-tfjs wrote beside the model.json. */
  weights?: Files;
  /** From the model's names of weights to those in the files, where they differ; default: none do. */
  names?: WeightNames;
  /** Called with the loader's report at the end; its `notes` say what was copied or became another dtype, and why. */
  onReport?: (report: LoadReport) => void;
}

/** Options of loadLayersModel. */
export interface LayersModelOptions extends ModelOptions {
  /**
   * Whether the layers must take every tensor and leave none of their weights without one; default: true. With false
   * the layers take the tensors that have their names and keep their initial values for the rest, even when nothing
   * matches: compare the report with what you expect.
   */
  strict?: boolean;
}

// `weights` is checked when files are resolved.
const MODEL_CHECKS = { ...WEIGHT_CHECKS, weights: () => {}, onReport: callback };
const LAYERS_MODEL_CHECKS = { ...MODEL_CHECKS, strict: boolean };

type Weights = Record<string, Loose>;

/**
 * `tf.loadGraphModel` with weights from .safetensors files, adopted as tfjs(tf) does: without an ArrayBuffer of all
 * weights, and without copies where the backend allows that. `model` is the path of a model.json, or of its folder (the
 * model.split.json there, else the model.json), or the contents. The model owns its weights: dispose() frees them.
 *
 * Rejects with UNKNOWN_TENSOR, TENSOR_INVALID_INFO or UNSUPPORTED_DTYPE (weights and model do not match), INVALID_INDEX
 * (no model.json), INVALID_ARGUMENT (also a model of layers), the codes of loaders and of tfjs(tf), and what
 * `tf.loadGraphModel` rejects with. Then all weights are disposed.
 */
export async function loadGraphModel<TF extends TensorFlowModels>(
  tf: TF,
  model: string | URL | object,
  options: ModelOptions = {},
): Promise<Awaited<ReturnType<TF['loadGraphModel']>>> {
  takesAtMost(3, arguments, 'loadGraphModel');
  checkOptions(options, MODEL_CHECKS, DECIDED);
  const { source, weights } = await prepare(tf, 'loadGraphModel', model, options);
  let taken = false;
  try {
    const artifacts = { ...artifactsOf(source), weightSpecs: [], weightData: new ArrayBuffer(0) };
    const decodeWeights = () => {
      taken = true;
      return weights;
    };
    const loaded = await tf.loadGraphModel({ load: async () => artifacts }, {}, { ...tf.io, decodeWeights });
    if (taken) return loaded;
    loaded.dispose();
    throw new InvalidArgumentError(
      'loadGraphModel(tf): this version of TensorFlow.js decodes weights by itself, expected 4.0 or newer',
    );
  } catch (error) {
    disposeAll(weights);
    throw error;
  }
}

/**
 * `tf.loadLayersModel` with weights from .safetensors files, adopted as tfjs(tf) does. Weights that will be replaced
 * are not initialised; the model's configuration keeps its initialisers. Optimizer weights that the model.json lists
 * are loaded, too. Rejects as loadGraphModel.
 */
export async function loadLayersModel<TF extends TensorFlowModels>(
  tf: TF,
  model: string | URL | object,
  options: LayersModelOptions = {},
): Promise<Awaited<ReturnType<TF['loadLayersModel']>>> {
  takesAtMost(3, arguments, 'loadLayersModel');
  checkOptions(options, LAYERS_MODEL_CHECKS, DECIDED);
  const { strict = true, ...rest } = options;
  const { source, weights } = await prepare(tf, 'loadLayersModel', model, rest);
  let loaded: Loose;
  try {
    const artifacts = artifactsOf(source);
    if (strict) artifacts.modelTopology = placeholderInitializers(tf, artifacts.modelTopology);
    loaded = await tf.loadLayersModel({ load: async () => artifacts });
    const optimizer = new Set(source.specs.filter((spec) => spec.group === 'optimizer').map((spec) => spec.name));
    loaded.loadWeights(Object.fromEntries(Object.entries(weights).filter(([name]) => !optimizer.has(name))), strict);
    if (loaded.optimizer != null && optimizer.size > 0) {
      await loaded.optimizer.setWeights([...optimizer].map((name) => ({ name, tensor: weights[name] })));
    }
    return loaded;
  } catch (error) {
    loaded?.dispose();
    throw error;
  } finally {
    disposeAll(weights); // the model's variables keep the memory
  }
}

/** The checked model, and every weight by the model's name of it. */
async function prepare(
  tf: TensorFlowModels,
  name: 'loadGraphModel' | 'loadLayersModel',
  model: string | URL | object,
  { weights: given, names, onReport, ...options }: ModelOptions,
): Promise<{ source: TfjsModel; weights: Weights }> {
  checkTensorFlow(tf, `${name}(tf)`, [name]);
  const calls = watchOf(options);
  const source = await calls.during(readModelJson(model, LOADABLE_NAMES, calls));
  checkFormat(source, name);
  const files = await calls.during(weightsOf(source, given, { ...options, calls }));
  const adopter = new Adopter(tf);
  const told = (report: LoadReport) =>
    onReport?.({ ...report, ...(adopter.notes.length > 0 && { notes: [...adopter.notes] }) });
  const weights: Weights = Object.create(null); // a weight may have any name, __proto__ as well
  try {
    for await (const { specs: same, tensor, wish } of iterateWeights(
      source.specs,
      files,
      names,
      options,
      calls,
      told,
    )) {
      const spec = same[0];
      if (spec?.dtype === 'string') {
        weights[spec.name] = tf.tensor(decodeStrings(await tensor.toHost(), spec), [...spec.shape], 'string');
      } else {
        weights[spec?.name ?? tensor.name] = await adopter.adopt(tensor, wish);
      }
      for (const other of same.slice(1)) weights[other.name] = weights[spec!.name].clone();
    }
    return { source, weights };
  } catch (error) {
    disposeAll(weights);
    throw error;
  }
}

function disposeAll(weights: Weights): void {
  for (const tensor of Object.values(weights)) tensor.dispose(); // a second dispose does nothing
}
