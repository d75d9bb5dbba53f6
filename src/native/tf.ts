/** What csrc/napi/tf_bindings.cc exports: memory for TensorFlow's C library. */
import type { NativeAllocation } from './core.js';

/** See csrc/convert/element_convert.h. With `scale` and `min`: value * scale + min. */
export interface ElementConversion {
  /** Index into DTYPE_NAMES. */
  readonly from: number;
  readonly to: 'float32' | 'int32';
  readonly scale?: number;
  readonly min?: number;
}

/** The TensorFlow that this process has loaded, and the name of the op that adopts memory in it. */
export interface TensorFlowLibrary {
  readonly op: string;
  readonly version: string;
  readonly library: string;
}

export interface TfAddon {
  convertElements(
    allocation: NativeAllocation,
    offset: number,
    count: number,
    how: ElementConversion,
  ): Promise<NativeAllocation>;
  tfRegister(): TensorFlowLibrary;
  tfAdopt(allocation: NativeAllocation, offset: number, length: number, dtype: number, shape: Float64Array): number;
  tfRelease(token: number): void;
}
