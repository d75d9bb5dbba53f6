import type { DeviceTensor } from './device-tensor.js';

/** Makes a framework's own tensor over a DeviceTensor's memory. The adapters are in 'fastsafetensors-node/ort' and '/tfjs'. */
export interface Framework<T> {
  readonly name: string;
  /** Takes over the tensor: it is the adapter's to dispose. */
  adopt(tensor: DeviceTensor): T | Promise<T>;
  /** What a user should know of how tensors were adopted: copies that were needed, dtypes that changed. Part of the loader's report. */
  readonly notes?: readonly string[];
}

/** What the framework makes of a tensor; the tensor itself without one. A tensor that it refuses is disposed: nobody else has it. */
export function adopt<T>(framework: Framework<T> | undefined, tensor: DeviceTensor): T | Promise<T> {
  if (!framework) return tensor as T;
  const refuse = (error: unknown): never => {
    tensor.dispose();
    throw error;
  };
  try {
    const adopted = framework.adopt(tensor);
    return isPromise(adopted) ? Promise.resolve(adopted).then(undefined, refuse) : adopted;
  } catch (error) {
    return refuse(error);
  }
}

/** Disposes what an adapter makes when nobody waits for it any more, and then the tensor where it was only borrowed: otherwise that is the adapter's. */
export function disposeWhenMade(adopted: Promise<unknown>, borrowed?: DeviceTensor): void {
  adopted
    .then((made) => (made as { dispose?: () => unknown } | null | undefined)?.dispose?.())
    .catch(() => {}) // it was refused, or cannot be disposed: nobody is there to be told
    .finally(() => borrowed?.dispose());
}

export function isPromise<T>(value: T | Promise<T>): value is Promise<T> {
  return typeof (value as { then?: unknown } | null)?.then === 'function';
}
