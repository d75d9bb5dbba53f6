import { native } from '../../src/native/addon.js';
import type { NativeOrtControl } from '../../src/native/ort.js';

/** The outcome, or at once the signal's reason; ONNX Runtime is told to end, and what it makes all the same is given to `discard`. */
export function abortable<T>(
  outcome: Promise<T>,
  control: NativeOrtControl,
  signal: AbortSignal,
  discard: (late: T) => void = () => {},
): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const abort = (): void => {
      native().ortStop(control);
      reject(signal.reason);
      outcome.then(discard, () => {});
    };
    signal.addEventListener('abort', abort, { once: true });
    outcome.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
    if (signal.aborted) abort();
  });
}
