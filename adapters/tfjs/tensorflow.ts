import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';

// biome-ignore lint/suspicious/noExplicitAny: tfjs' signatures are generic in ranks, and naming them would tie users to one version of its types.
export type Loose = any;

/** The part of `@tensorflow/tfjs`, `@tensorflow/tfjs-node` or `@tensorflow/tfjs-core` that is used here: pass the module itself. */
export interface TensorFlow {
  tensor(values: Loose, shape?: Loose, dtype?: Loose): Loose;
  complex(real: Loose, imag: Loose): Loose;
  getBackend(): string;
  backend(): Loose;
  engine(): Loose;
}

/** What loading models needs as well: all of tfjs has it. */
export interface TensorFlowModels extends TensorFlow {
  loadGraphModel(model: Loose, options?: Loose, io?: Loose): Promise<Loose>;
  loadLayersModel(model: Loose, options?: Loose): Promise<Loose>;
  readonly io: Loose;
  readonly serialization: Loose;
}

export type TensorOf<TF extends TensorFlow> = ReturnType<TF['tensor']>;

/** INVALID_ARGUMENT when a function is not there that `caller` needs. */
export function checkTensorFlow(tf: unknown, caller: string, names: readonly string[] = []): void {
  for (const name of ['tensor', 'getBackend', 'backend', 'engine', ...names]) {
    if (typeof (tf as Record<string, unknown> | null)?.[name] === 'function') continue;
    throw new InvalidArgumentError(
      `${caller}: expected the TensorFlow.js module, found no function tf.${name}; pass the module itself, as in ${caller.replace('(tf', "(require('@tensorflow/tfjs')")}`,
    );
  }
}

/** Where backends keep their tf.DataStorage: cpu; tensorflow and webgpu; wasm; webgl. */
const STORAGES = ['data', 'tensorMap', 'dataIdMap', 'texData'];

export interface Backend {
  readonly name: string;
  readonly instance: Loose;
}

/** The backend that is in use. DEVICE_UNAVAILABLE when there is none yet, INVALID_ARGUMENT when it belongs to another copy of tfjs-core. */
export function backendOf(tf: TensorFlow): Backend {
  let instance: Loose;
  try {
    instance = tf.backend();
  } catch (cause) {
    throw new FastSafetensorsError(
      'DEVICE_UNAVAILABLE',
      `tfjs: this TensorFlow.js has no backend (${(cause as Error).message}); import one, as '@tensorflow/tfjs-node' or '@tensorflow/tfjs-backend-cpu', and await tf.ready()`,
      { cause },
    );
  }
  // Tensors that one copy counts and another disposes are never freed, or freed twice.
  const owner = STORAGES.map((name) => instance?.[name]?.dataMover).find(Boolean);
  if (owner !== undefined && owner !== tf.engine()) {
    throw new InvalidArgumentError(
      `tfjs: the backend "${tf.getBackend()}" belongs to another copy of @tensorflow/tfjs-core than the tf that was passed; expected one copy (npm ls @tensorflow/tfjs-core shows them, npm dedupe or one version for all @tensorflow packages removes them)`,
    );
  }
  return { name: tf.getBackend(), instance };
}
