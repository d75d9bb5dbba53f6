import { checkOptions, integer } from '../base/checks.js';
import { type DTypeName, typedArrayOf } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { native, settled } from '../native/addon.js';
import type { Device } from './device.js';
import { Memory } from './memory.js';

/** Node 20 cannot make a larger ArrayBuffer over foreign memory. */
const MAX_ARRAY_BUFFER = 2 ** 32;

const RANGE_CHECKS = { offset: integer(0), length: integer(0) };

/** A tensor in device memory. It keeps its allocation alive until it is disposed or collected. */
export class DeviceTensor {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly device: Device;
  readonly #offset: number;
  #memory: Memory | null; // null for an empty tensor, and when disposed
  #disposed = false;
  #borrowed = false;
  #data: ArrayBufferView | undefined;

  /** @internal */
  constructor(
    name: string,
    dtype: DTypeName,
    shape: readonly number[],
    byteLength: number,
    device: Device,
    memory: Memory | null,
    offset: number,
  ) {
    this.name = name;
    this.dtype = dtype;
    this.shape = shape;
    this.byteLength = byteLength;
    this.device = device;
    this.#memory = byteLength > 0 && memory ? memory.retain() : null;
    this.#offset = offset;
  }

  /** Address of the first byte in the device's address space, a multiple of 256, valid until dispose(); 0n for an empty tensor. CLOSED after dispose(). */
  get pointer(): bigint {
    this.#check();
    return this.#memory ? this.#memory.pointer + BigInt(this.#offset) : 0n;
  }

  /**
   * Host tensors: the nearest typed array over the very memory (16-bit floats: Uint16Array, 8-bit and smaller: Uint8Array, C64: pairs in a Float32Array). It
   * holds a reference of its own and stays valid after dispose(). CUDA tensors: DEVICE_UNAVAILABLE. Over 4 GiB: INVALID_ARGUMENT. CLOSED after dispose().
   */
  get data(): ArrayBufferView {
    this.#check();
    if (this.#data) return this.#data;
    if (this.device.type !== 'cpu') {
      throw new FastSafetensorsError(
        'DEVICE_UNAVAILABLE',
        `tensor "${this.name}" is in the memory of ${this.device}, which the host cannot address: copy it with toHost()`,
        { tensor: this.name },
      );
    }
    const TypedArray = typedArrayOf(this.dtype);
    if (!this.#memory) {
      this.#data = new TypedArray(0);
    } else {
      if (this.byteLength > MAX_ARRAY_BUFFER) {
        throw new InvalidArgumentError(
          `tensor "${this.name}" has ${this.byteLength} bytes, more than an ArrayBuffer over foreign memory can have (4 GiB): copy it in parts with toHost({ offset, length })`,
        );
      }
      // Typed arrays are constructed here, not natively: under jest a native one would be of another realm.
      this.#data = new TypedArray(this.#memory.arrayBuffer(this.#offset, this.byteLength));
    }
    return this.#data;
  }

  /** The raw bytes, copied, off the event loop; by default all of them. INVALID_ARGUMENT for a range outside the tensor, CLOSED after dispose(). */
  async toHost(range: { offset?: number; length?: number } = {}): Promise<Uint8Array> {
    this.#check();
    const { offset = 0, length = this.byteLength - offset } = checkOptions(range, RANGE_CHECKS, {}, 'toHost');
    if (length < 0 || offset + length > this.byteLength) {
      throw new InvalidArgumentError(
        `toHost: offset ${offset} and length ${length} reach outside tensor "${this.name}" of ${this.byteLength} bytes`,
      );
    }
    if (length > MAX_ARRAY_BUFFER) {
      throw new InvalidArgumentError(
        `toHost: ${length} bytes are more than 4 GiB: copy them in parts with { offset, length }`,
      );
    }
    if (!this.#memory || length === 0) return new Uint8Array(0);
    const memory = this.#memory.retain(); // dispose() during the copy must not free it
    try {
      return new Uint8Array(await settled(native().readAllocation(memory.handle, this.#offset + offset, length)));
    } finally {
      memory.release();
    }
  }

  /** A copy in an allocation of its own, on the same device. OUT_OF_HOST_MEMORY, OUT_OF_DEVICE_MEMORY, CLOSED. */
  async clone(): Promise<DeviceTensor> {
    this.#check();
    const source = this.#memory?.retain();
    if (!source) return new DeviceTensor(this.name, this.dtype, this.shape, this.byteLength, this.device, null, 0);
    try {
      const copy = await Memory.allocate(this.device, this.byteLength);
      try {
        await settled(
          native().copyAllocation(source.handle, copy.handle, Float64Array.of(this.byteLength, this.#offset, 0)),
        );
        return new DeviceTensor(this.name, this.dtype, this.shape, this.byteLength, this.device, copy, 0);
      } finally {
        copy.release();
      }
    } finally {
      source.release();
    }
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Lets go of the memory. Typed arrays from `data` stay valid. A second call does nothing. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#data = undefined;
    this.#memory?.release();
    this.#memory = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** The loader gives the memory back when the next tensor is asked for: an adapter must not dispose it. @internal */
  get borrowed(): boolean {
    return this.#borrowed;
  }

  /** @internal */
  set borrowed(borrowed: boolean) {
    this.#borrowed = borrowed;
  }

  /** The allocation and the place in it, for parts of this package that hand the memory on. @internal */
  get memory(): { memory: Memory | null; offset: number } {
    this.#check();
    return { memory: this.#memory, offset: this.#offset };
  }

  #check(): void {
    if (this.#disposed) {
      throw new FastSafetensorsError('CLOSED', `tensor "${this.name}" was disposed`, { tensor: this.name });
    }
  }
}
