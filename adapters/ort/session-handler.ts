import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';
import { COPY_CHECKS } from '../../src/loaders/options.js';
import { native, settled } from '../../src/native/addon.js';
import type { NativeOrtSession, OrtFetch, OrtPort } from '../../src/native/ort.js';
import { abortable } from './abortable.js';
import { runConfig } from './session-options.js';
import { checkOutput, sourceOf, tensorOf } from './tensors.js';
import { type Loose, typeName } from './types.js';

/** The InferenceSessionHandler behind an InferenceSession of onnxruntime-common. */
export class SessionHandler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: readonly object[];
  readonly outputMetadata: readonly object[];
  readonly #session: NativeOrtSession;
  readonly #Tensor: Loose;
  readonly #outputs: ReadonlyMap<string, OrtPort>;
  readonly #onDevice: (output: string) => boolean;
  #closed: Promise<void> | undefined;

  constructor(session: NativeOrtSession, Tensor: Loose, preferredOutputLocation: Loose) {
    this.#session = session;
    this.#Tensor = Tensor;
    const { inputs, outputs } = native().ortPorts(session);
    this.inputNames = inputs.map(({ name }) => name);
    this.outputNames = outputs.map(({ name }) => name);
    this.inputMetadata = inputs.map(metadataOf);
    this.outputMetadata = outputs.map(metadataOf);
    this.#outputs = new Map(outputs.map((port) => [port.name, port]));
    this.#onDevice = locations(preferredOutputLocation);
  }

  /**
   * Runs off the event loop, several runs at a time. Memory of feeds and of given fetches is used in place: do not
   * write or transfer it before the promise settles. Rejects with INVALID_ARGUMENT, UNSUPPORTED_DTYPE, CLOSED,
   * ORT_ERROR, or the reason of `options.signal`.
   */
  async run(
    feeds: Readonly<Record<string, Loose>>,
    fetches: Readonly<Record<string, Loose>>,
    options: Loose = {},
  ): Promise<Record<string, unknown>> {
    const signal = (options?.signal ?? undefined) as AbortSignal | undefined;
    if (signal) COPY_CHECKS.signal(signal, 'signal');
    signal?.throwIfAborted();
    if (this.#closed) throw new FastSafetensorsError('CLOSED', 'the session was released');
    const names = Object.keys(fetches);
    const wanted = names.map((name): OrtFetch => {
      const given = fetches[name];
      if (given) return { ...sourceOf(name, given), name, given: true };
      const onDevice = this.#onDevice(name);
      checkOutput(this.#outputs.get(name), name, this.outputNames, onDevice);
      return { name, onDevice };
    });
    const given = Object.keys(feeds).map((name) => ({ ...sourceOf(name, feeds[name]), name }));
    const control = native().ortNewControl();
    if (options?.terminate) native().ortStop(control);
    const running = settled(native().ortRun(this.#session, control, given, wanted, runConfig(options ?? {})));
    const results = await (signal ? abortable(running, control, signal) : running);
    const outputs: Record<string, unknown> = {};
    for (const [i, name] of names.entries()) {
      const result = results[i];
      outputs[name] = result ? tensorOf(this.#Tensor, result) : fetches[name];
    }
    return outputs;
  }

  /** Runs in progress reject with CLOSED; resolves when the session's memory is free, for a second call as well. */
  dispose(): Promise<void> {
    this.#closed ??= settled(native().ortCloseSession(this.#session));
    return this.#closed;
  }

  // The session option enableProfiling profiles the session's whole life.
  startProfiling(): void {}
  endProfiling(): void {}
}

function metadataOf({ name, isTensor, type, shape }: OrtPort): object {
  return isTensor ? { name, isTensor, type: typeName(type), shape: [...shape] } : { name, isTensor };
}

function locations(preferred: Loose): (output: string) => boolean {
  const onDevice = (location: unknown): boolean => {
    if (location === undefined || location === 'cpu' || location === 'cpu-pinned') return false;
    if (location === 'gpu-buffer') return true;
    throw new InvalidArgumentError(`preferredOutputLocation: expected 'cpu' or 'gpu-buffer', found '${location}'`);
  };
  if (typeof preferred !== 'object' || preferred === null) {
    const all = onDevice(preferred ?? undefined);
    return () => all;
  }
  const byName = new Map(Object.entries(preferred).map(([name, location]) => [name, onDevice(location)]));
  return (output) => byName.get(output) ?? false;
}
