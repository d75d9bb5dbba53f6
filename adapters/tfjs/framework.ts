import { takesAtMost } from '../../src/base/checks.js';
import { Device } from '../../src/device/device.js';
import type { DeviceTensor } from '../../src/device/device-tensor.js';
import type { Framework } from '../../src/device/framework.js';
import { copyToDevice } from '../../src/device/tensor-copy.js';
import { tensorError } from '../tensor-error.js';
import { type Affine, ruleOf, type TfDtype, toTfDtype } from './dtypes.js';
import { NodeBackend } from './node-backend.js';
import { type Backend, backendOf, checkTensorFlow, type TensorFlow, type TensorOf } from './tensorflow.js';

/** The Framework of tfjs(tf). */
export interface TfjsFramework<T> extends Framework<T> {
  readonly name: 'tfjs';
  /** Copies that the backend needed and dtypes that became others, each once. */
  readonly notes: readonly string[];
}

/**
 * Hands loaded tensors to TensorFlow.js, on the backend that `tf` uses when a tensor arrives:
 * `new ParallelLoader({ files, framework: tfjs(tf) })` yields `tf.Tensor`s, which are the caller's to dispose.
 *
 * - `@tensorflow/tfjs-node(-gpu)`: the tensor is the loader's memory, on the GPU too; dispose() of its last user frees
 *   it.
 * - the cpu backend: the tensor's typed array is the loader's memory, freed when it is collected after dispose().
 * - other backends keep tensors in memory of their own: one copy, which `notes` and the loader's report mention.
 *
 * F32, I32, BOOL and C64 stay what they are; other floating dtypes of 8 bits and more become float32, other integers
 * int32. adopt() disposes the DeviceTensor unless that is borrowed. It fails with UNSUPPORTED_DTYPE (a dtype that
 * TensorFlow.js does not have; a number that int32 cannot hold, naming tensor and element), DEVICE_UNAVAILABLE (no
 * backend; a CUDA tensor for a backend that is not on that GPU), INVALID_ARGUMENT (two copies of TensorFlow.js; over 4
 * GiB on the cpu backend) or CLOSED. Throws INVALID_ARGUMENT when `tf` is no TensorFlow.js.
 */
export function tfjs<TF extends TensorFlow>(tf: TF): TfjsFramework<TensorOf<TF>> {
  takesAtMost(1, arguments, 'tfjs');
  checkTensorFlow(tf, 'tfjs(tf)');
  const adopter = new Adopter<TF>(tf);
  return {
    name: 'tfjs',
    adopt: (tensor) => adopter.adopt(tensor),
    get notes() {
      return adopter.notes;
    },
  };
}

/** What a model wants a weight to be, where the file's dtype does not say it. */
export interface Wish {
  readonly dtype?: TfDtype;
  readonly affine?: Affine;
}

/** Makes tensors of one `tf`. */
export class Adopter<TF extends TensorFlow> {
  readonly #tf: TF;
  readonly #notes = new Set<string>();
  #backend: Backend | undefined;
  #node: NodeBackend | null = null;

  constructor(tf: TF) {
    this.#tf = tf;
  }

  get notes(): readonly string[] {
    return [...this.#notes];
  }

  // Returns a promise only where one is needed: a model may have 100,000 tensors.
  adopt(tensor: DeviceTensor, wish: Wish = {}): TensorOf<TF> | Promise<TensorOf<TF>> {
    const rule = ruleOf(tensor);
    const node = this.#nodeBackend();
    if (tensor.device.type !== 'cpu') return this.#adoptFromDevice(tensor, wish);
    if (rule.dtype === 'complex64') return this.#complex(tensor);
    if (rule.direct && !wish.affine) return this.#give(tensor, node, rule.dtype);
    const dtype = wish.affine ? (wish.dtype === 'int32' ? 'int32' : 'float32') : (rule.dtype as 'float32' | 'int32');
    return toTfDtype(tensor, dtype, wish.affine).then((converted) => {
      this.#note(`${tensor.dtype} became ${dtype}`);
      try {
        return this.#give(converted, node, dtype, tensor);
      } catch (error) {
        converted.dispose();
        throw error;
      }
    });
  }

  /** A tensor over `source`'s memory; disposes `source`, and `original`, from which that was made. */
  #give(source: DeviceTensor, node: NodeBackend | null, dtype: TfDtype, original = source): TensorOf<TF> {
    const adopted = this.#place(source, node, dtype);
    if (source !== original) source.dispose();
    if (!original.borrowed) original.dispose();
    return adopted;
  }

  #place(source: DeviceTensor, node: NodeBackend | null, dtype: TfDtype): TensorOf<TF> {
    if (node?.runsOnHost && source.byteLength > 0) return node.adopt(source, dtype) as TensorOf<TF>;
    if (this.#backend!.name !== 'cpu' && source.byteLength > 0) {
      this.#note(`the backend "${this.#backend!.name}" keeps tensors in memory of its own: each was copied once`);
    }
    return this.#tf.tensor(source.data, [...source.shape], dtype);
  }

  /** Copies, because TensorFlow.js keeps real and imaginary parts apart. */
  async #complex(tensor: DeviceTensor): Promise<TensorOf<TF>> {
    const tf = this.#tf;
    const pairs = new Float32Array((await tensor.toHost()).buffer);
    const shape = [...tensor.shape];
    const part = (first: number) => {
      const values = new Float32Array(pairs.length / 2);
      for (let i = 0; i < values.length; ++i) values[i] = pairs[2 * i + first]!;
      return tf.tensor(values, shape, 'float32');
    };
    const real = part(0);
    const imag = part(1);
    try {
      const complex = tf.complex(real, imag);
      if (!tensor.borrowed) tensor.dispose();
      return complex;
    } catch (cause) {
      const why = `which the backend "${this.#backend!.name}" does not take: ${(cause as Error).message}`;
      const what = `is C64, ${why}; leave it out (filter) or use another backend`;
      throw tensorError('UNSUPPORTED_DTYPE', tensor, what, cause);
    } finally {
      real.dispose();
      imag.dispose();
      this.#note('complex64 was copied: TensorFlow.js keeps real and imaginary parts apart');
    }
  }

  #adoptFromDevice(tensor: DeviceTensor, wish: Wish): TensorOf<TF> | Promise<TensorOf<TF>> {
    const node = this.#node;
    if (!node?.usesGpu(tensor.device)) {
      const where = node && !node.runsOnHost ? 'runs on cuda:0' : 'takes tensors from host memory';
      const remedy = "load with device: 'cpu', or use @tensorflow/tfjs-node-gpu with device: 'cuda:0'";
      const what = `is on ${tensor.device}, but the backend "${this.#backend!.name}" ${where}; ${remedy}`;
      throw tensorError('DEVICE_UNAVAILABLE', tensor, what);
    }
    const adopted = wish.affine ? null : node.adoptFromDevice(tensor);
    if (adopted === null) return this.#throughHost(tensor, wish);
    if (!tensor.borrowed) tensor.dispose();
    return adopted as TensorOf<TF>;
  }

  /** For what TensorFlow.js keeps on the host anyway (int32), and what it cannot convert on the GPU. */
  async #throughHost(tensor: DeviceTensor, wish: Wish): Promise<TensorOf<TF>> {
    const host = await copyToDevice(tensor, Device.parse('cpu'));
    try {
      const adopted = await this.adopt(host, wish);
      this.#note(`${tensor.dtype} went through host memory`);
      if (!tensor.borrowed) tensor.dispose();
      return adopted;
    } finally {
      host.dispose();
    }
  }

  /** The backend of tfjs-node; null for others, and where its TensorFlow cannot adopt memory. */
  #nodeBackend(): NodeBackend | null {
    const backend = backendOf(this.#tf);
    if (backend.instance !== this.#backend?.instance) {
      this.#backend = backend;
      this.#node = NodeBackend.of(backend, (note) => this.#note(note));
    }
    return this.#node;
  }

  #note(note: string): void {
    this.#notes.add(note);
  }
}
