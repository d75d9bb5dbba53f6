import type { DeviceTensor } from './device-tensor.js';

/** Makes a framework's own tensor over a DeviceTensor's memory. The adapters are in 'fastsafetensors-node/ort' and '/tfjs'. */
export interface Framework<T> {
  readonly name: string;
  /** Takes over the tensor: it is the adapter's to dispose. */
  adopt(tensor: DeviceTensor): T | Promise<T>;
}
