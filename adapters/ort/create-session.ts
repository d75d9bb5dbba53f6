import { checkOptions, isUrl, pathOf, takesAtMost } from '../../src/base/checks.js';
import { InvalidArgumentError } from '../../src/base/errors.js';
import {
  CREATED,
  type Created,
  OF_LOADERS,
  object,
  PROVIDER,
  PROVIDER_CHECKS,
  type ProviderOptions,
  registerBackend,
} from './backend.js';
import type { Unmatched } from './match.js';
import type { Loose } from './types.js';

/** The part of the module of onnxruntime-node that createSession uses, of any version. */
export interface OnnxRuntimeNode {
  readonly InferenceSession: { create(model: string, options?: Loose): Promise<Loose> };
}

/** ort's own type of a session. */
type SessionOf<O extends OnnxRuntimeNode> = Awaited<ReturnType<O['InferenceSession']['create']>>;
/** ort's own type of session options. */
type SessionOptionsOf<O extends OnnxRuntimeNode> = NonNullable<Parameters<O['InferenceSession']['create']>[1]>;

/** Options of createSession: where the session runs, what its weights are, and ort's own. */
export interface CreateSessionOptions<O extends OnnxRuntimeNode = OnnxRuntimeNode> extends ProviderOptions {
  /** ort's own SessionOptions, but for executionProviders, which `device` decides. Default: {}. */
  sessionOptions?: Omit<SessionOptionsOf<O>, 'executionProviders'>;
}

/** What sessions of createSession have besides ort's own members. */
export interface SessionExtras {
  /** Where the session runs: 'cpu' or 'cuda:N'. */
  readonly device: string;
  /** Weights of the model (from 1 KiB) that kept the model's own data, and tensors of the files that no weight took. */
  readonly unmatched: Unmatched;
  /** As ort's release(): runs in progress end with CLOSED; resolves when the session's memory is free. */
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * Makes an InferenceSession of ort's own class whose large weights lie in memory that this package loaded: once for
 * this session, and once for several that are given the same loaded buffer as `weights`. `ort` is the module of
 * onnxruntime-node. `model` is a path or bytes; its weights are in it, in files of external data, or in
 * `options.weights`. `run` does not block the event loop.
 *
 * Rejects with INVALID_ARGUMENT for wrong options; UnmatchedWeightsError (UNKNOWN_TENSOR) and TENSOR_INVALID_INFO for
 * weights that do not fit the model; DEVICE_UNAVAILABLE when the device, or ONNX Runtime's library for it, is missing;
 * the codes of loaders; ORT_ERROR for what ONNX Runtime itself refuses; or the reason of an aborted signal.
 */
export async function createSession<O extends OnnxRuntimeNode>(
  ort: O,
  given: string | URL | Uint8Array,
  options: CreateSessionOptions<O> = {},
): Promise<SessionOf<O> & SessionExtras> {
  takesAtMost(3, arguments, 'createSession');
  checkOptions(options, { ...PROVIDER_CHECKS, sessionOptions: object }, OF_LOADERS);
  if (typeof given !== 'string' && !isUrl(given) && !(given instanceof Uint8Array))
    throw new InvalidArgumentError(`createSession: expected a model's path or bytes, found ${typeof given}`);
  const model = given instanceof Uint8Array ? given : pathOf(given, 'model');
  registerBackend(ort);
  const { sessionOptions = {}, ...own } = options;
  if ('executionProviders' in sessionOptions)
    throw new InvalidArgumentError('sessionOptions: executionProviders cannot be given here; say where with device');
  let made: Created | undefined;
  const provider = {
    ...own,
    name: PROVIDER,
    [CREATED]: (created: Created) => {
      made = created;
    },
  };
  const session: SessionOf<O> = await ort.InferenceSession.create(model as Loose, {
    ...(sessionOptions as object),
    executionProviders: [provider],
  });
  return Object.defineProperties(session, {
    device: { value: made!.device },
    unmatched: { value: made!.unmatched },
    [Symbol.asyncDispose]: { value: () => (session as Loose).release() },
  });
}
