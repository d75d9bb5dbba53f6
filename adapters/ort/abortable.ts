import { unlessAborted } from '../../src/base/waiting.js';
import { native } from '../../src/native/addon.js';
import type { NativeOrtControl } from '../../src/native/ort.js';

/** unlessAborted() of what ONNX Runtime does: it is told to end, and what it still makes is given to `discard`. */
export function abortable<T>(
  outcome: Promise<T>,
  control: NativeOrtControl,
  signal: AbortSignal,
  discard: (late: T) => void = () => {},
): Promise<T> {
  return unlessAborted(outcome, [signal], () => {
    native().ortStop(control);
    outcome.then(discard, () => {});
  });
}
