import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';

// biome-ignore lint/suspicious/noExplicitAny: its own types would tie users to one version of TensorFlow.js
export type Loose = any;

/** What is used of `@tensorflow/tfjs`, `@tensorflow/tfjs-node` or `@tensorflow/tfjs-core`; pass the module itself. */
export interface TensorFlow {
  tensor(values: Loose, shape?: Loose, dtype?: Loose): Loose;
  complex(real: Loose, imag: Loose): Loose;
  getBackend(): string;
  backend(): Loose;
  engine(): Loose;
}

/** What loading models uses besides, which all of `@tensorflow/tfjs` has. */
export interface TensorFlowModels extends TensorFlow {
  loadGraphModel(model: Loose, options?: Loose, io?: Loose): Promise<Loose>;
  loadLayersModel(model: Loose, options?: Loose): Promise<Loose>;
  readonly io: Loose;
  readonly serialization: Loose;
}

/** The tensor type of a TensorFlow.js module. */
export type TensorOf<TF extends TensorFlow> = ReturnType<TF['tensor']>;

/** INVALID_ARGUMENT when `tf` lacks a function that `caller` needs. */
export function checkTensorFlow(tf: unknown, caller: string, names: readonly string[] = []): void {
  for (const name of ['tensor', 'getBackend', 'backend', 'engine', ...names]) {
    if (typeof (tf as Record<string, unknown> | null)?.[name] === 'function') continue;
    const example = caller.replace('(tf', "(require('@tensorflow/tfjs')");
    const found = `expected the TensorFlow.js module, found no function tf.${name}`;
    throw new InvalidArgumentError(`${caller}: ${found}; pass the module itself, as in ${example}`);
  }
}

/** The members in which backends keep their tf.DataStorage: cpu; tensorflow and webgpu; wasm; webgl. */
const STORAGES = ['data', 'tensorMap', 'dataIdMap', 'texData'];

export interface Backend {
  readonly name: string;
  readonly instance: Loose;
}

/** The backend that `tf` uses. DEVICE_UNAVAILABLE for none, INVALID_ARGUMENT for one of another copy of tfjs-core. */
export function backendOf(tf: TensorFlow): Backend {
  let instance: Loose;
  try {
    instance = tf.backend();
  } catch (cause) {
    const remedy = "import one, as '@tensorflow/tfjs-node' or '@tensorflow/tfjs-backend-cpu', and await tf.ready()";
    const message = `tfjs: this TensorFlow.js has no backend (${(cause as Error).message}); ${remedy}`;
    throw new FastSafetensorsError('DEVICE_UNAVAILABLE', message, { cause });
  }
  // Tensors that one copy counts and another disposes would never be freed, or twice.
  const owner = STORAGES.map((name) => instance?.[name]?.dataMover).find(Boolean);
  if (owner !== undefined && owner !== tf.engine()) {
    throw new InvalidArgumentError(
      `tfjs: the backend "${tf.getBackend()}" belongs to another copy of @tensorflow/tfjs-core than the tf that was ` +
        'passed; expected one copy (npm ls @tensorflow/tfjs-core shows them, npm dedupe or one version for all ' +
        '@tensorflow packages removes them)',
    );
  }
  return { name: tf.getBackend(), instance };
}
