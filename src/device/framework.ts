import type { DeviceTensor } from './device-tensor.js';

/**
 * Makes a framework's own tensors over the memory of DeviceTensors: onnxruntime(ort) of 'fastsafetensors-node/ort' or
 * tfjs(tf) of 'fastsafetensors-node/tfjs'.
 */
export interface Framework<T> {
  /** As reports and messages call it. */
  readonly name: string;
  /** Takes over the tensor and has to dispose it; after an error, which ends the load, the loader disposes it. */
  adopt(tensor: DeviceTensor): T | Promise<T>;
  /** How tensors were adopted, for the loader's report: copies that were needed, dtypes that changed. */
  readonly notes?: readonly string[];
}

/** What the framework makes of a tensor; without one, the tensor itself. A tensor that it refuses is disposed. */
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

/** Disposes what an adapter makes for nobody any more, and then a borrowed tensor; others are the adapter's. */
export function disposeWhenMade(adopted: Promise<unknown>, borrowed?: DeviceTensor): void {
  adopted
    .then((made) => (made as { dispose?: () => unknown } | null | undefined)?.dispose?.())
    .catch(() => {}) // it was refused or cannot be disposed, and nobody is left to hear of it
    .finally(() => borrowed?.dispose());
}

export function isPromise<T>(value: T | Promise<T>): value is Promise<T> {
  return typeof (value as { then?: unknown } | null)?.then === 'function';
}
