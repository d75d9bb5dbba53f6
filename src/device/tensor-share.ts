import type { DTypeName } from '../base/dtype.js';
import { native } from '../native/addon.js';

/** A tensor on its way to another thread: plain values, which postMessage() clones, and a token for the memory. */
export interface SharedTensor {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly device: string;
  /** Stands for the memory, in this process alone; '' for an empty tensor. */
  readonly token: string;
}

/** What share() gives. */
export class TensorShare implements SharedTensor {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly device: string;
  readonly token: string;

  /** @internal */
  constructor(tensor: Omit<SharedTensor, 'device' | 'token'> & { readonly device: object }, token: string) {
    this.name = tensor.name;
    this.dtype = tensor.dtype;
    this.shape = [...tensor.shape];
    this.byteLength = tensor.byteLength;
    this.device = String(tensor.device);
    this.token = token;
  }

  /**
   * Frees the memory of a share that nobody has received: a worker that ends before it has read its messages never
   * will. Does nothing after that.
   */
  revoke(): void {
    if (this.token !== '') native().revokeShared(this.token);
  }
}
