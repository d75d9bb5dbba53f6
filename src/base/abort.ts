/** Calls waiting for one signal, and the listener that makes them. */
interface Waiting {
  readonly calls: Set<() => void>;
  readonly listener: () => void;
}

const waitingFor = new WeakMap<AbortSignal, Waiting>();

/**
 * Calls `call` when the signal is aborted; returns what cancels that. `call` must be a function of its own each time. A
 * signal has one listener however many calls wait: many loads share a user's signal, and Node.js warns of a leak from
 * eleven listeners on.
 */
export function onAbort(signal: AbortSignal, call: () => void): () => void {
  const waiting = waitingFor.get(signal) ?? listen(signal);
  waiting.calls.add(call);
  return () => {
    waiting.calls.delete(call);
    if (waiting.calls.size === 0) forget(signal, waiting);
  };
}

/**
 * The outcome of a promise, or at once the reason of the first signal that is aborted. `abandoned` is called then:
 * nobody will take the outcome, and what still comes of the promise is the caller's to end.
 */
export function unlessAborted<T>(
  promise: Promise<T>,
  signals: readonly AbortSignal[],
  abandoned?: () => void,
): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const abort = (): void => {
      stop();
      reject(signals.find((signal) => signal.aborted)!.reason);
      abandoned?.();
    };
    const stops = signals.map((signal) => onAbort(signal, abort));
    const stop = (): void => {
      for (const each of stops) each();
    };
    promise.then(resolve, reject).finally(stop);
    if (signals.some((signal) => signal.aborted)) abort();
  });
}

function listen(signal: AbortSignal): Waiting {
  const waiting: Waiting = {
    calls: new Set(),
    listener: () => {
      forget(signal, waiting);
      for (const call of [...waiting.calls]) call();
    },
  };
  waitingFor.set(signal, waiting);
  signal.addEventListener('abort', waiting.listener);
  return waiting;
}

function forget(signal: AbortSignal, waiting: Waiting): void {
  signal.removeEventListener('abort', waiting.listener);
  if (waitingFor.get(signal) === waiting) waitingFor.delete(signal);
}
