import { resolve } from 'node:path';
import { isMap } from 'node:util/types';
import { isMainThread } from 'node:worker_threads';
import { boolean, type Check, checkOptions, entriesOf, pathOf, plainCopy, takesAtMost } from '../../src/base/checks.js';
import { InvalidArgumentError } from '../../src/base/errors.js';
import { CallWatch } from '../../src/base/waiting.js';
import type { CopierType } from '../../src/copiers/registry.js';
import { Device } from '../../src/device/device.js';
import { FilesBufferOnDevice } from '../../src/loaders/files-buffer.js';
import { COPY_CHECKS, type FileOptions, ownedBy, PARALLEL_CHECKS } from '../../src/loaders/options.js';
import { checked, native, settled } from '../../src/native/addon.js';
import type { NativeOrtControl, OrtSessionConfig } from '../../src/native/ort.js';
import type { Files } from '../../src/safetensors/files.js';
import type { Progress } from '../../src/transfer/progress.js';
import { abortable } from './abortable.js';
import type { Unmatched, WeightNames } from './match.js';
import { type Prepared, prepareModel } from './prepare.js';
import { SessionHandler } from './session-handler.js';
import { externalFiles, sessionConfig } from './session-options.js';
import type { Loose } from './types.js';

/** The name of this package's execution provider in `executionProviders`. */
export const PROVIDER = 'fastsafetensors';

/** Up to this many bytes of weights ONNX Runtime may pack them for the CPU's kernels, which copies them. */
const MAX_PREPACKED_BYTES = 64 * 1024 * 1024;

/** Where a session runs and what its weights are. */
export interface ProviderOptions extends FileOptions {
  /** Where the session runs and its weights lie: 'cpu' (default), 'cuda', 'cuda:N', 'gpu' or 'gpu:N'. */
  device?: string;
  /**
   * The model's weights: files to load, or a loaded buffer on `device`. A buffer may serve several sessions and may be
   * closed once they exist. Without this option the files that have the model's external data
   * (`model.onnx_data`, or .safetensors) are loaded; a model with its weights inside needs nothing.
   *
   * What counts is the dtype in memory: a buffer that was loaded with `dtype: 'F32'` serves an F32 model, whatever its
   * files have. Above 64 MiB of converted weights ONNX Runtime cannot fold or pack constants from them.
   */
  weights?: Files | FilesBufferOnDevice;
  /** The copier that loads `weights` when they are files. Default: 'auto'. */
  copier?: CopierType;
  /** For weights whose name in the files differs: { name in the model: name in the files }. Default: none differ. */
  names?: WeightNames;
  /**
   * Weights of the model without a tensor in `weights` keep the model's own data. Default: false, they are an
   * UnmatchedWeightsError where their data lie outside the model or a tensor is left over that would fit.
   */
  allowUnmatched?: boolean;
  /** Options of ONNX Runtime's CUDA provider under its own names: { arena_extend_strategy: 'kSameAsRequested' }. */
  providerOptions?:
    | Readonly<Record<string, string | number | boolean>>
    | ReadonlyMap<string, string | number | boolean>;
  /** Aborts the creation of the session, which rejects at once with the signal's reason. */
  signal?: AbortSignal;
  /** Called while the weights are loaded; not for a buffer that is loaded already. */
  onProgress?: (progress: Progress) => void;
}

/**
 * These options as an entry of `executionProviders`. Pass a variable of this type: ort's own types refuse an object
 * literal with fields that they do not know.
 */
export interface ExecutionProvider extends ProviderOptions {
  readonly name: typeof PROVIDER;
}

export const object: Check = (value, name) => void plainCopy(value, name);
const objectOrMap: Check = (value, name) => {
  if (!isMap(value)) plainCopy(value, name, 'an object or a Map');
};

export const PROVIDER_CHECKS = {
  device: (value: unknown) => void Device.parse(value as string),
  weights: () => {}, // checked where they are read
  copier: () => {}, // checked by the loader
  names: objectOrMap,
  allowUnmatched: boolean,
  followLinks: PARALLEL_CHECKS.followLinks,
  variant: PARALLEL_CHECKS.variant,
  index: PARALLEL_CHECKS.index,
  providerOptions: objectOrMap,
  signal: COPY_CHECKS.signal,
  onProgress: COPY_CHECKS.onProgress,
};

/** For checkOptions: options of loaders, and what to do to use them. */
export const OF_LOADERS = ownedBy(
  'loaders: load with a SafeTensorsFileLoader and pass what its copyFilesToDevice() gives as weights',
  PARALLEL_CHECKS,
);

/** The key under which createSession passes a callback through ort to learn what became of its options. */
export const CREATED = Symbol('created');
export interface Created {
  readonly device: string;
  readonly unmatched: Unmatched;
}

const backends = new WeakMap<object, Backend>();

/**
 * Registers the execution provider 'fastsafetensors' with ort; once per module, later calls do nothing. After it
 * `ort.InferenceSession.create(model, { executionProviders: ['fastsafetensors'] })` makes sessions that run off the
 * event loop on tensors of the host or of a device. Options take the provider's place:
 * `{ name: 'fastsafetensors', device: 'cuda:0', weights: 'model.safetensors' }`. createSession() registers by itself.
 *
 * Throws INVALID_ARGUMENT unless `ort` is the module of onnxruntime-node.
 */
export function registerBackend(ort: object): void {
  takesAtMost(1, arguments, 'registerBackend');
  const module = ort as Loose;
  if (typeof module?.registerBackend !== 'function' || typeof module.Tensor?.fromGpuBuffer !== 'function') {
    throw new InvalidArgumentError(
      "registerBackend(ort): expected the module itself, as in registerBackend(require('onnxruntime-node'))",
    );
  }
  // By Tensor: `import * as ort` and require('onnxruntime-node') are two objects of one module.
  if (backends.has(module.Tensor)) return;
  const backend = new Backend(module);
  // Below 0: never chosen unless it is named.
  module.registerBackend(PROVIDER, backend, -1);
  backends.set(module.Tensor, backend);
  endWithProcess();
}

let ending = false;

/** exit() destroys statics that ONNX Runtime uses: its work must end before. A worker's ends with its environment. */
function endWithProcess(): void {
  if (ending || !isMainThread) return;
  ending = true;
  process.on('exit', () => native().ortEndProcess());
}

class Backend {
  readonly #ort: Loose;

  constructor(ort: Loose) {
    this.#ort = ort;
  }

  async init(): Promise<void> {}

  async createInferenceSessionHandler(given: string | Uint8Array, options: Loose = {}): Promise<SessionHandler> {
    const model = typeof given === 'string' ? pathOf(given, 'model') : given;
    const provider = (options.executionProviders ?? []).find((entry: Loose) => entry?.name === PROVIDER) ?? {};
    const { name: _, [CREATED]: created, ...own } = provider;
    checkOptions(own, PROVIDER_CHECKS, OF_LOADERS);
    const { device = 'cpu', weights, signal } = own as ProviderOptions;
    signal?.throwIfAborted();
    // Before anything is read: the device may be unavailable. Of a loaded buffer the device is checked first.
    const place = Device.parse(device).toString();
    const loaded = weights instanceof FilesBufferOnDevice;
    checked(() => native().ortLibrary(severityOf(this.#ort.env?.logLevel), loaded ? undefined : place));
    const config = sessionConfig(options);
    const files = await externalFiles(options.externalData);
    const givenFiles = new Set(files.map(({ path }) => path));
    const calls = new CallWatch({}, signal ? [signal] : []);
    const preparing = prepareModel(model, { ...own, device: place, givenFiles, calls });
    const prepared = await calls.during(preparing, () => {
      preparing.then(
        ({ tensors }) => tensors.forEach((tensor) => void tensor.dispose()),
        () => {}, // it was given up
      );
    });
    const control = native().ortNewControl();
    // Its look at the files goes through the same watch, which keeps the event loop alive only while it is asked to.
    const watched = { ...prepared, check: () => calls.during(prepared.check()) };
    const making = this.#make(model, watched, { ...config, externalFiles: files }, place, own, control).then(
      (session) => new SessionHandler(session, this.#ort.Tensor, options.preferredOutputLocation),
    );
    const handler = await (signal ? abortable(making, control, signal, (late) => void late.dispose()) : making);
    created?.({ device: place, unmatched: prepared.unmatched } satisfies Created);
    return handler;
  }

  async #make(
    given: string | Uint8Array,
    prepared: Prepared,
    config: Partial<OrtSessionConfig>,
    device: string,
    { providerOptions = {} }: ProviderOptions,
    control: NativeOrtControl,
  ) {
    const provided = entriesOf<string, string | number | boolean>(
      providerOptions,
      'providerOptions',
      'an object or a Map',
    );
    const entries = [...(config.entries ?? [])];
    const byDefault = (key: string, value: string): void => {
      if (!entries.some(([entry]) => entry === key)) entries.push([key, value]);
    };
    if (prepared.folder !== undefined)
      byDefault('session.model_external_initializers_file_folder_path', prepared.folder);
    // Packed weights are a second copy in each session. Small models may have it: they then give the very bits and
    // speed of onnxruntime-node.
    const bytes = prepared.tensors.reduce((sum, { byteLength }) => sum + byteLength, 0);
    if (bytes > MAX_PREPACKED_BYTES) byDefault('session.disable_prepacking', '1');
    try {
      const session = await settled(
        native().ortCreateSession(
          {
            ...config,
            entries,
            device,
            model: prepared.model,
            modelName: typeof given === 'string' ? resolve(given) : 'the model in memory',
            weights: prepared.weights,
            providerOptions: provided.map(([key, value]) => [key, String(value)] as const),
          },
          control,
        ),
      );
      try {
        await prepared.check();
      } catch (error) {
        await settled(native().ortCloseSession(session));
        throw error;
      }
      return session;
    } finally {
      // The session has its own references.
      for (const tensor of prepared.tensors) tensor.dispose();
    }
  }
}

function severityOf(level: unknown): number {
  const at = ['verbose', 'info', 'warning', 'error', 'fatal'].indexOf(level as string);
  return at < 0 ? 2 : at;
}
