import { checkOptions, integer, takesAtMost } from '../base/checks.js';
import { type DTypeName, type TypedArrayOf, typedArrayOf } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { keepExample } from '../base/examples.js';
import { checked, native, settled } from '../native/addon.js';
import { Allocation } from './allocation.js';
import { Device } from './device.js';
import { TensorShare } from './tensor-share.js';

/** Node 20 cannot make a larger ArrayBuffer over native memory. */
const MAX_ARRAY_BUFFER = 2 ** 32;

const RANGE_CHECKS = { offset: integer(0), length: integer(0) };

/** What a tensor is without its memory: what JSON.stringify() makes of it. */
export interface DeviceTensorJson<D extends DTypeName = DTypeName> {
  name: string;
  dtype: D;
  shape: readonly number[];
  byteLength: number;
  device: string;
}

/** DeviceTensor of one dtype. */
export class DeviceTensorOf<D extends DTypeName> {
  static {
    Object.defineProperty(DeviceTensorOf, 'name', { value: 'DeviceTensor' }); // as users know it
    keepExample(new DeviceTensorOf('', 'U8', [], 0, Device.parse('cpu'), null, 0));
  }

  readonly name: string;
  /** The dtype in memory: that of the file unless the load converted it. */
  readonly dtype: D;
  /** Dimensions, outermost first; [] for a scalar. */
  readonly shape: readonly number[];
  /** Bytes of the elements, which are row-major and little-endian. */
  readonly byteLength: number;
  readonly device: Device;
  readonly #offset: number;
  #allocation: Allocation | null; // null for an empty tensor and after dispose()
  #disposed = false;
  #borrowed = false;
  #data: TypedArrayOf<D> | undefined;

  /** Retains `allocation`. @internal */
  constructor(
    name: string,
    dtype: D,
    shape: readonly number[],
    byteLength: number,
    device: Device,
    allocation: Allocation | null,
    offset: number,
  ) {
    this.name = name;
    this.dtype = dtype;
    this.shape = shape;
    this.byteLength = byteLength;
    this.device = device;
    this.#allocation = byteLength > 0 && allocation ? allocation.retain() : null;
    this.#offset = offset;
  }

  /**
   * Address of the first byte on the device, a multiple of 256, or of the dtype's size where it is mapped; valid until
   * dispose(); 0n when empty. CLOSED.
   */
  get pointer(): bigint {
    this.#check();
    return this.#allocation ? this.#allocation.pointer + BigInt(this.#offset) : 0n;
  }

  /**
   * The nearest typed array over the tensor's own memory: Uint16Array for 16-bit floats, Uint8Array for 8 bits and
   * fewer, pairs in a Float32Array for C64. It holds a reference of its own and stays valid after dispose(). Up
   * to 32 KiB it lies in an ArrayBuffer with its neighbours, as small Buffers of Node.js do: at its byteOffset.
   * DEVICE_UNAVAILABLE for a CUDA tensor, INVALID_ARGUMENT for more than 4 GiB, CLOSED.
   */
  get data(): TypedArrayOf<D> {
    this.#check();
    // Anew where it was detached, perhaps by the owner of a neighbour.
    if (!this.#data || (this.#data.byteLength === 0 && this.byteLength > 0))
      this.#data = this.#view() as TypedArrayOf<D>;
    return this.#data;
  }

  #view(): TypedArrayOf {
    const { name, byteLength } = this;
    if (this.device.type !== 'cpu') {
      const where = `in the memory of ${this.device}, which the host cannot address`;
      const message = `tensor "${name}" is ${where}; copy it with toHost()`;
      throw new FastSafetensorsError('DEVICE_UNAVAILABLE', message, { tensor: name });
    }
    const TypedArray = typedArrayOf(this.dtype);
    if (!this.#allocation) return new TypedArray(0);
    if (byteLength > MAX_ARRAY_BUFFER) {
      const limit = 'more than an ArrayBuffer over native memory can have (4 GiB)';
      const instead = 'copy it in parts with toHost({ offset, length })';
      throw new InvalidArgumentError(`tensor "${name}" has ${byteLength} bytes, ${limit}: ${instead}`);
    }
    return this.#allocation.array(TypedArray, this.#offset, byteLength);
  }

  /**
   * A copy of `length` bytes from byte `offset` on, by default of all, made off the event loop. INVALID_ARGUMENT for a
   * range that is not inside the tensor or has more than 4 GiB, OUT_OF_HOST_MEMORY, CUDA_ERROR, CLOSED.
   */
  async toHost(range: { offset?: number; length?: number } = {}): Promise<Uint8Array> {
    this.#check();
    takesAtMost(1, arguments, 'toHost');
    const { offset = 0, length = this.byteLength - offset } = checkOptions(range, RANGE_CHECKS, {}, 'toHost');
    if (length < 0 || offset + length > this.byteLength) {
      const range = `offset ${offset} and length ${length}`;
      throw new InvalidArgumentError(
        `toHost: ${range} reach outside tensor "${this.name}" of ${this.byteLength} bytes`,
      );
    }
    if (length > MAX_ARRAY_BUFFER) {
      const instead = 'copy them in parts with { offset, length }';
      throw new InvalidArgumentError(`toHost: ${length} bytes are more than 4 GiB: ${instead}`);
    }
    if (!this.#allocation || length === 0) return new Uint8Array(0);
    const allocation = this.#allocation.retain(); // so that dispose() during the copy does not free it
    try {
      return new Uint8Array(await settled(native().readAllocation(allocation.handle, this.#offset + offset, length)));
    } finally {
      allocation.release();
    }
  }

  /**
   * A copy in an allocation of its own on the device, which keeps no other tensor's memory.
   * OUT_OF_HOST_MEMORY, OUT_OF_DEVICE_MEMORY, CUDA_ERROR, CLOSED.
   */
  async clone(): Promise<DeviceTensorOf<D>> {
    this.#check();
    takesAtMost(0, arguments, 'clone');
    const { name, dtype, shape, byteLength, device } = this;
    const source = this.#allocation?.retain();
    if (!source) return new DeviceTensorOf(name, dtype, shape, byteLength, device, null, 0);
    try {
      return await Allocation.during(device, byteLength, async (copy) => {
        const run = Float64Array.of(byteLength, this.#offset, 0);
        await settled(native().copyAllocation(source.handle, copy.handle, run));
        return new DeviceTensorOf(name, dtype, shape, byteLength, device, copy, 0);
      });
    } finally {
      source.release();
    }
  }

  /**
   * A value for postMessage(), of which importTensors() makes a tensor of the same memory in another worker_thread;
   * nothing is copied. It holds the memory until it is first received, so that this tensor may be disposed at once, or
   * until its revoke() is called; what was received holds the memory by itself. CLOSED.
   */
  share(): TensorShare {
    this.#check();
    takesAtMost(0, arguments, 'share');
    this.#allocation?.noteShared();
    return new TensorShare(
      this,
      this.#allocation
        ? checked(() => native().shareAllocation(this.#allocation!.handle, this.#offset, this.byteLength))
        : '',
    );
  }

  /** Whether dispose() was called. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /** Releases the memory, freed with its last user. Typed arrays from `data` stay valid. A second call does nothing. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#data = undefined;
    this.#allocation?.release();
    this.#allocation = null;
  }

  /** dispose(), for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** The loader frees the memory when the next tensor is asked for: an adapter must not dispose it. @internal */
  get borrowed(): boolean {
    return this.#borrowed;
  }

  /** @internal */
  set borrowed(borrowed: boolean) {
    this.#borrowed = borrowed;
  }

  /** The allocation and the tensor's byte in it, for parts of this package that hand the memory on. @internal */
  get placement(): { allocation: Allocation | null; offset: number } {
    this.#check();
    return { allocation: this.#allocation, offset: this.#offset };
  }

  /** What it is, without its elements. */
  toJSON(): DeviceTensorJson<D> {
    const { name, dtype, shape, byteLength, device } = this;
    return { name, dtype, shape, byteLength, device: device.toString() };
  }

  #check(): void {
    if (!this.#disposed) return;
    throw new FastSafetensorsError('CLOSED', `tensor "${this.name}" was disposed`, { tensor: this.name });
  }
}

/**
 * A tensor in host or GPU memory. It shares its allocation, of at most 256 MiB unless it is larger, with other tensors
 * of the load and keeps the whole of it alive until it is disposed or collected, whatever becomes of the loader; see
 * clone(). After dispose() every use is CLOSED.
 *
 * A union over its `dtype`: where that is known, so is the array of `data`. `tensor.dtype === 'F32'` makes it a
 * Float32Array. It cannot be posted to another thread: share() gives what can.
 */
export type DeviceTensor<D extends DTypeName = DTypeName> = { [K in D]: DeviceTensorOf<K> }[D];

/** What `instanceof` takes. */
// biome-ignore lint/complexity/noBannedTypes: without it, instanceof is an error, and nothing is to be called here.
export interface DeviceTensorClass extends Function {
  readonly prototype: DeviceTensor;
  /** @internal */
  new <D extends DTypeName>(...args: ConstructorParameters<typeof DeviceTensorOf<D>>): DeviceTensor<D>;
}

/** For `instanceof`; tensors come from loaders. */
export const DeviceTensor: DeviceTensorClass = DeviceTensorOf as never;
