interface Waiting {
  readonly calls: Set<() => void>;
  readonly listener: () => void;
}

/** Who waits for a signal. */
const hub = new WeakMap<AbortSignal, Waiting>();

/**
 * Calls back, by a function of its own for each call, when the signal is aborted; returns what takes it back. One listener a signal, while somebody waits: many loads
 * share a user's signal, and listeners by the dozen are warned of as a leak.
 */
export function onAbort(signal: AbortSignal, call: () => void): () => void {
  const waiting = hub.get(signal) ?? listen(signal);
  waiting.calls.add(call);
  return () => {
    waiting.calls.delete(call);
    if (waiting.calls.size === 0) forget(signal, waiting);
  };
}

function listen(signal: AbortSignal): Waiting {
  const waiting: Waiting = {
    calls: new Set(),
    listener: () => {
      forget(signal, waiting);
      for (const call of [...waiting.calls]) call();
    },
  };
  hub.set(signal, waiting);
  signal.addEventListener('abort', waiting.listener);
  return waiting;
}

function forget(signal: AbortSignal, waiting: Waiting): void {
  signal.removeEventListener('abort', waiting.listener);
  if (hub.get(signal) === waiting) hub.delete(signal);
}
