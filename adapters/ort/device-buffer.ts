import { FastSafetensorsError } from '../../src/base/errors.js';
import type { DeviceTensor } from '../../src/device/device-tensor.js';
import { native, settled } from '../../src/native/addon.js';
import type { OrtResult, OrtSource } from '../../src/native/ort.js';
import { tensorError } from '../tensor-error.js';
import { type ElementType, elementOfDType, elementOfNumber, type Loose, numberOfDType } from './types.js';

/**
 * The `gpuBuffer` of this package's tensors of location 'gpu-buffer': device memory (or host memory, from sessions on
 * the cpu) that sessions of this package take without a copy. ONNX Runtime's own backends cannot take it.
 */
export class OrtDeviceBuffer {
  /** 'cpu' or 'cuda:N'. */
  readonly device: string;
  readonly byteLength: number;
  /** The address on that device; valid until the tensor is disposed. */
  readonly pointer: bigint;
  #source: (() => OrtSource) | undefined;
  readonly #release: () => void;

  /** @internal */
  constructor(device: string, byteLength: number, pointer: bigint, source: () => OrtSource, release: () => void) {
    this.device = device;
    this.byteLength = byteLength;
    this.pointer = pointer;
    this.#source = source;
    this.#release = release;
  }

  /** @internal CLOSED after dispose. */
  get source(): OrtSource {
    if (!this.#source) throw new FastSafetensorsError('CLOSED', `the tensor on ${this.device} was disposed`);
    return this.#source();
  }

  /** @internal */
  dispose(): void {
    if (!this.#source) return;
    this.#source = undefined;
    this.#release();
  }
}

/** An ort.Tensor of location 'gpu-buffer' over an output that a run left on its device. */
export function outputOnDevice(Tensor: Loose, result: Required<OrtResult>): unknown {
  const { type, dims, value, byteLength, device, pointer } = result;
  const buffer = new OrtDeviceBuffer(
    device,
    byteLength,
    pointer,
    () => ({ type, dims, value }),
    () => native().ortReleaseValue(value),
  );
  return gpuTensor(Tensor, elementOfNumber(type)!, dims, buffer, () => settled(native().ortReadValue(value)));
}

/** A DeviceTensor as the core takes it. Throws UNSUPPORTED_DTYPE; CLOSED when it was disposed. */
export function sourceOfTensor(tensor: DeviceTensor): OrtSource {
  const type = numberOfDType(tensor.dtype);
  if (type === undefined) {
    const what = `is ${tensor.dtype}, which ONNX Runtime has no element type for`;
    throw tensorError('UNSUPPORTED_DTYPE', tensor, what);
  }
  return { type, dims: tensor.shape, ...memoryOf(tensor) };
}

/** Where the bytes of a DeviceTensor are, as the core takes them; nowhere for an empty one. CLOSED. */
export function memoryOf(tensor: DeviceTensor): Pick<OrtSource, 'memory' | 'offset' | 'byteLength'> {
  const { allocation, offset } = tensor.placement;
  return allocation ? { memory: allocation.handle, offset, byteLength: tensor.byteLength } : {};
}

/** An ort.Tensor of location 'gpu-buffer' over a tensor on a GPU, which it owns from then on. UNSUPPORTED_DTYPE. */
export function deviceTensorOf<T>(Tensor: Loose, tensor: DeviceTensor): T {
  const element = elementOfDType(tensor.dtype);
  if (!element?.onDevice) {
    const what =
      `on ${tensor.device} is ${tensor.dtype}, which ONNX Runtime's JavaScript has no device tensor for; ` +
      "give it to createSession as a weight, or load with device: 'cpu'";
    throw tensorError('UNSUPPORTED_DTYPE', tensor, what);
  }
  const buffer = new OrtDeviceBuffer(
    tensor.device.toString(),
    tensor.byteLength,
    tensor.pointer,
    () => sourceOfTensor(tensor),
    () => tensor.dispose(),
  );
  const read = async () => (await tensor.toHost()).buffer as ArrayBuffer;
  return gpuTensor(Tensor, element, [...tensor.shape], buffer, read) as T;
}

function gpuTensor(
  Tensor: Loose,
  element: ElementType,
  dims: readonly number[],
  buffer: OrtDeviceBuffer,
  read: () => Promise<ArrayBuffer>,
): unknown {
  return Tensor.fromGpuBuffer(buffer, {
    dataType: element.type,
    dims,
    download: async () => new element.array(await read()),
    dispose: () => buffer.dispose(),
  });
}
