import type { DTypeName } from '../base/dtype.js';
import type { Device } from '../device/device.js';
import type { NativeMappedFile } from '../native/core.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import type { Part } from './parts.js';

/** What becomes of floating tensors: LoaderOptions.dtype and dtypePolicy. */
export interface Conversion {
  readonly dtype?: DTypeName;
  readonly dtypePolicy?: 'strict' | 'convertible';
}

/** A file and the tensors of it that are wanted: indices in the order of offsets; null for all. */
export interface PlanInput {
  readonly metadata: SafeTensorsMetadata;
  readonly selection: Uint32Array | null;
}

/** Which of several devices each tensor goes to. */
export interface Placement {
  readonly devices: readonly Device[];
  /** By tensor of a file: an index into `devices`. */
  of(metadata: SafeTensorsMetadata): Uint16Array;
}

/** Items in arrays, in the order in which they become ready, and the allocations that they lie in. */
export interface Items {
  readonly inputs: readonly PlanInput[];
  /** By item: its tensor's index in inputs[files[item]].metadata. */
  readonly tensors: Uint32Array;
  /** By item: the dtype in memory, an index into DTYPE_NAMES. */
  readonly dtypes: Uint8Array;
  /** By item: the dtype in the file. */
  readonly stored: Uint8Array;
  /** Whether some item has another dtype in memory than in its file. */
  readonly converts: boolean;
  /** By item: index into inputs. */
  readonly files: Uint32Array;
  /** By item: the allocation that it lies in. */
  readonly allocations: Uint32Array;
  /** By item: where it begins in its file. */
  readonly offsets: Float64Array;
  /** By item: bytes in the file. */
  readonly lengths: Float64Array;
  /** By item: bytes in memory. */
  readonly sizes: Float64Array;
  /** By item: where it begins in its allocation. */
  readonly destinations: Float64Array;
  /** By item: the part of its tensor that it is, null for all of it. Undefined where every item is all of it. */
  readonly parts?: readonly (Part | null)[];
  /** By allocation: bytes. */
  readonly allocationSizes: Float64Array;
  /** By allocation: its batch, of those on its device. */
  readonly allocationBatches: Uint32Array;
  /** Where allocations lie on several devices: these, and by allocation an index into them. */
  readonly devices?: readonly Device[];
  readonly allocationDevices?: Uint16Array;
  /** What lies between two items is another plan's to read: no read includes it. */
  readonly apart?: boolean;
  /** Where some allocations are views of mapped files; see NativePlan. */
  readonly mapping?: {
    readonly mapped: readonly (NativeMappedFile | null)[];
    readonly allocationMapped: Uint32Array;
    readonly allocationMappedOffsets: Float64Array;
  };
}
