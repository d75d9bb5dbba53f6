import type { Device } from '../../src/device/device.js';
import type { DeviceTensor } from '../../src/device/device-tensor.js';
import { checked, native } from '../../src/native/addon.js';
import type { TensorFlowLibrary } from '../../src/native/tf.js';
import { tensorError } from '../tensor-error.js';
import type { TfDtype } from './dtypes.js';
import type { Backend, Loose } from './tensorflow.js';

/** TF_DataType of tensorflow/c/tf_datatype.h. */
const TF_TYPES = { F32: 1, F64: 2, I32: 3, BOOL: 10, BF16: 14, F16: 19 } as const;
type TfType = keyof typeof TF_TYPES;

/**
 * The backend of `@tensorflow/tfjs-node` and `-gpu`. Nothing outside can put a tensor into its table, so our memory
 * comes in as the output of an op of ours (csrc/tf), which its own executeOp runs. It uses binding.createTensor,
 * executeOp and deleteTensor, and createOutputTensor.
 */
export class NodeBackend {
  readonly #backend: Loose;
  readonly #library: TensorFlowLibrary;

  private constructor(backend: Loose, library: TensorFlowLibrary) {
    this.#backend = backend;
    this.#library = library;
  }

  /** Null for another backend and, with a note, for a tfjs-node whose TensorFlow cannot adopt memory. */
  static of({ name, instance }: Backend, note: (text: string) => void): NodeBackend | null {
    if (name !== 'tensorflow') return null;
    const { binding } = instance;
    const functions = [binding?.createTensor, binding?.executeOp, binding?.deleteTensor, instance.createOutputTensor];
    if (functions.some((f) => typeof f !== 'function')) {
      note('this version of tfjs-node is not known: tensors go through tf.tensor, which may copy');
      return null;
    }
    try {
      const library = checked(() => native().tfRegister());
      return new NodeBackend(instance, library);
    } catch (error) {
      note(`tensors go through tf.tensor, which may copy: ${(error as Error).message}`);
      return null;
    }
  }

  /** Whether TensorFlow computes on this device: tfjs-node-gpu uses the first GPU that it sees. */
  usesGpu(device: Device): boolean {
    return device.type === 'cuda' && (device.index ?? 0) === 0 && this.#backend.isUsingGpuDevice === true;
  }

  /** A tensor over the memory of a host tensor that is not empty, with a reference until its last user is disposed. */
  adopt(tensor: DeviceTensor, dtype: TfDtype): unknown {
    const type = dtype === 'bool' ? 'BOOL' : dtype === 'int32' ? 'I32' : 'F32';
    return this.#backend.createOutputTensor(this.#run(tensor, type));
  }

  /** Whether adopt() takes host memory: TensorFlow wants it on the GPU where it runs ops there. */
  get runsOnHost(): boolean {
    return this.#backend.isUsingGpuDevice !== true;
  }

  /**
   * A tensor over GPU memory, or its conversion on the GPU to float32. Null where TensorFlow keeps such tensors on the
   * host, or cannot convert it.
   */
  adoptFromDevice(tensor: DeviceTensor): unknown {
    if (tensor.byteLength === 0) return null;
    switch (tensor.dtype) {
      case 'F32':
      case 'BOOL':
        return this.#backend.createOutputTensor(this.#run(tensor, tensor.dtype));
      case 'F16':
      case 'BF16':
      case 'F64':
        return this.#cast(tensor, tensor.dtype);
      default:
        return null;
    }
  }

  /** To float32 by TensorFlow's own Cast. */
  #cast(tensor: DeviceTensor, type: TfType): unknown {
    const { binding } = this.#backend;
    const { id } = this.#run(tensor, type);
    try {
      const attributes = [
        { name: 'SrcT', type: binding.TF_ATTR_TYPE, value: TF_TYPES[type] },
        { name: 'DstT', type: binding.TF_ATTR_TYPE, value: TF_TYPES.F32 },
        { name: 'Truncate', type: binding.TF_ATTR_BOOL, value: false },
      ];
      return this.#backend.createOutputTensor(binding.executeOp('Cast', attributes, [id], 1)[0]);
    } finally {
      binding.deleteTensor(id);
    }
  }

  /** Runs our op on the tensor's memory and returns executeOp's description of its output, { id, shape, dtype }. */
  #run(tensor: DeviceTensor, type: TfType): Loose {
    const { binding } = this.#backend;
    const { allocation, offset } = tensor.placement;
    const shape = Float64Array.from(tensor.shape);
    const token = checked(() => native().tfAdopt(allocation!.handle, offset, tensor.byteLength, TF_TYPES[type], shape));
    let id: number | undefined;
    try {
      id = binding.createTensor([], TF_TYPES.I32, Int32Array.of(token)) as number;
      const attributes = [{ name: 'T', type: binding.TF_ATTR_TYPE, value: TF_TYPES[type] }];
      return binding.executeOp(this.#library.op, attributes, [id], 1)[0];
    } catch (cause) {
      const what = `was not taken over by TensorFlow ${this.#library.version}: ${(cause as Error).message}`;
      throw tensorError('DEVICE_UNAVAILABLE', tensor, what, cause);
    } finally {
      if (id !== undefined) binding.deleteTensor(id);
      native().tfRelease(token); // no effect if the op took it
    }
  }
}
