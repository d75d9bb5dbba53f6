import { resolve } from 'node:path';
import { isMainThread } from 'node:worker_threads';
import { checkOptions } from '../../src/base/checks.js';
import { InvalidArgumentError } from '../../src/base/errors.js';
import type { CopierType } from '../../src/copiers/registry.js';
import { Device } from '../../src/device/device.js';
import { FilesBufferOnDevice } from '../../src/loaders/files-buffer.js';
import { COPY_CHECKS, ownedBy, PARALLEL_CHECKS } from '../../src/loaders/options.js';
import { checked, native, settled } from '../../src/native/addon.js';
import type { NativeOrtControl, OrtSessionConfig } from '../../src/native/ort.js';
import type { Files } from '../../src/safetensors/shards.js';
import type { Progress } from '../../src/transfer/progress.js';
import { abortable } from './abortable.js';
import type { Names, Unmatched } from './match.js';
import { type Prepared, prepareModel } from './prepare.js';
import { SessionHandler } from './session-handler.js';
import { externalFiles, sessionConfig } from './session-options.js';
import type { Loose } from './types.js';

/** The name of the execution provider. */
export const PROVIDER = 'fastsafetensors';

/** Weights together up to this may be packed by ONNX Runtime, which copies them. */
const MAX_PREPACKED_BYTES = 64 * 1024 * 1024;

/** Where a session runs and what its weights are. */
export interface ProviderOptions {
  /** 'cpu' (default), 'cuda', 'cuda:N', 'gpu', 'gpu:N'. */
  device?: string;
  /**
   * The model's weights: files, or a loaded buffer, which may serve several sessions and may be closed once they are made. Without it, .safetensors files that the
   * model's external data point into are loaded; a model with its weights inside needs nothing.
   */
  weights?: Files | FilesBufferOnDevice;
  /** What the weights are loaded with; 'auto'. */
  copier?: CopierType;
  /** Names in the weights by names in the model, where they differ. */
  names?: Names;
  /** Let weights of the model that found no tensor keep the model's own data. */
  allowUnmatched?: boolean;
  /** Of the CUDA execution provider, as ONNX Runtime names them: { arena_extend_strategy: 'kSameAsRequested' }. */
  providerOptions?: Readonly<Record<string, string | number | boolean>>;
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

/** How InferenceSession.create is told of them: `executionProviders: [provider]`, of a variable of this type, since ort's own types know no fields of others. */
export interface ExecutionProvider extends ProviderOptions {
  readonly name: typeof PROVIDER;
}

const any = (): void => {};
const object = (value: unknown, name: string): void => {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new InvalidArgumentError(`${name}: expected an object, found ${value === null ? 'null' : typeof value}`);
};
const boolean = (value: unknown, name: string): void => {
  if (typeof value !== 'boolean') throw new InvalidArgumentError(`${name}: expected a boolean, found ${typeof value}`);
};

export const PROVIDER_CHECKS = {
  device: (value: unknown) => void Device.parse(value as string),
  weights: any, // checked where they are read
  copier: any, // by the loader
  names: object,
  allowUnmatched: boolean,
  providerOptions: object,
  signal: COPY_CHECKS.signal!,
  onProgress: COPY_CHECKS.onProgress!,
};

/** For checkOptions. */
export const OF_LOADERS = ownedBy(
  'loaders: load with a SafeTensorsFileLoader and pass what its copyFilesToDevice() gives as weights',
  PARALLEL_CHECKS,
);

/** How createSession learns of the handler that ort made a session of. */
export const CREATED = Symbol('created');
export interface Created {
  readonly device: string;
  readonly unmatched: Unmatched;
}

const backends = new WeakMap<object, Backend>();

/**
 * Registers this package with ort, once a module: `ort.InferenceSession.create(model, { executionProviders: ['fastsafetensors'] })` then runs off the event loop,
 * on tensors of the host or of a device. Options go in the provider's place: `{ name: 'fastsafetensors', device: 'cuda:0', weights: 'model.safetensors' }`.
 * INVALID_ARGUMENT for what is not the module of onnxruntime-node.
 */
export function registerBackend(ort: object): void {
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

/** The process's exit destroys what ONNX Runtime stands on, and must not meet it at work. Workers end theirs with their environment. */
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

  async createInferenceSessionHandler(model: string | Uint8Array, options: Loose = {}): Promise<SessionHandler> {
    const provider = (options.executionProviders ?? []).find((entry: Loose) => entry?.name === PROVIDER) ?? {};
    const { name: _, [CREATED]: created, ...given } = provider;
    checkOptions(given, PROVIDER_CHECKS, OF_LOADERS);
    const { device = 'cpu', weights, copier, names, allowUnmatched, signal, onProgress } = given as ProviderOptions;
    signal?.throwIfAborted();
    // Before anything is read: there may be nothing to run on.
    const place = Device.parse(device).toString();
    const loaded = weights instanceof FilesBufferOnDevice; // its device is checked first
    checked(() => native().ortLibrary(severityOf(this.#ort.env?.logLevel), loaded ? undefined : place));
    const config = sessionConfig(options);
    const files = await externalFiles(options.externalData);
    const prepared = await prepareModel(model, {
      device: place,
      weights,
      copier,
      names,
      allowUnmatched,
      signal,
      onProgress,
      givenFiles: new Set(files.map(({ path }) => path)),
    });
    const control = native().ortNewControl();
    const making = this.#make(model, prepared, { ...config, externalFiles: files }, place, given, control).then(
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
    const entries = [...(config.entries ?? [])];
    const unless = (key: string, value: string): void => {
      if (!entries.some(([entry]) => entry === key)) entries.push([key, value]);
    };
    if (prepared.folder !== undefined) unless('session.model_external_initializers_file_folder_path', prepared.folder);
    // Packed for the CPU's kernels, weights have a second copy in each session. Small models have it, and with it the very bits and speed of onnxruntime-node.
    const bytes = prepared.tensors.reduce((sum, { byteLength }) => sum + byteLength, 0);
    if (bytes > MAX_PREPACKED_BYTES) unless('session.disable_prepacking', '1');
    try {
      const session = await settled(
        native().ortCreateSession(
          {
            ...config,
            entries,
            device,
            model: prepared.model,
            modelName: typeof given === 'string' ? resolve(given) : 'the model in memory',
            initializers: prepared.initializers,
            providerOptions: Object.entries(providerOptions).map(([key, value]) => [key, String(value)] as const),
          },
          control,
        ),
      );
      try {
        await prepared.check();
      } catch (error) {
        await native().ortCloseSession(session);
        throw error;
      }
      return session;
    } finally {
      // The session has references of its own.
      for (const tensor of prepared.tensors) tensor.dispose();
    }
  }
}

function severityOf(level: unknown): number {
  const at = ['verbose', 'info', 'warning', 'error', 'fatal'].indexOf(level as string);
  return at < 0 ? 2 : at;
}
