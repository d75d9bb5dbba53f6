import type { TypedArrayConstructor, TypedArrayOf } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { keepExample } from '../base/examples.js';
import { checked, native, settled } from '../native/addon.js';
import type { NativeAllocation, NativeBudget, NativeDevice } from '../native/core.js';
import { Device, openDevice } from './device.js';

/** Bytes that are copied out of JavaScript's memory in one turn of the event loop: about 0.1 ms. */
const WRITE_PIECE = 1024 * 1024;
/**
 * Bytes: typed arrays of at most SHARED share an ArrayBuffer of each WINDOW that they begin in. One over native memory
 * takes microseconds to make and again to collect, as long as copying 10 KiB.
 */
const SHARED = 32 * 1024;
const WINDOW = 256 * 1024;

/**
 * One allocation of tensor memory, shared by the tensors in it. It is freed when its last user has released it or when
 * it is collected, so that no order of calls leaves a pointer into freed memory. There is one native handle per
 * allocation and none per tensor.
 */
export class Allocation {
  static {
    keepExample(new Allocation({} as NativeAllocation, Device.parse('cpu'), 0));
  }

  readonly device: Device;
  readonly size: number;
  #handle: NativeAllocation;
  #pointer: bigint | undefined;
  #users = 0;
  #wasShared = false;
  #released = false;
  #windows: (ArrayBuffer | undefined)[] = [];

  /** Nobody has retained it yet. */
  constructor(handle: NativeAllocation, device: Device, size: number) {
    this.#handle = handle;
    this.device = device;
    this.size = size;
  }

  /**
   * Opens the device and allocates tensor memory of `size` bytes, not 0, on it. Retained once, for the caller to
   * release. DEVICE_UNAVAILABLE, OUT_OF_DEVICE_MEMORY, OUT_OF_HOST_MEMORY.
   */
  static async allocate(device: Device, size: number): Promise<Allocation> {
    return new Allocation(await settled(native().allocate(await openDevice(device), size)), device, size).retain();
  }

  /** The same within a budget; null where that has no room for it now. */
  static async within(budget: NativeBudget, device: Device, size: number): Promise<Allocation | null> {
    const handle = await settled(native().allocateWithin(await openDevice(device), size, budget));
    return handle && new Allocation(handle, device, size).retain();
  }

  /** An allocation of its own for `use`, released when that settles: what lies in it, retains it. As allocate(). */
  static async during<T>(device: Device, size: number, use: (allocation: Allocation) => Promise<T>): Promise<T> {
    const allocation = await Allocation.allocate(device, size);
    try {
      return await use(allocation);
    } finally {
      allocation.release();
    }
  }

  /** Like allocate(), at once, for a few KiB of host memory. */
  static atOnce(opened: NativeDevice, device: Device, size: number): Allocation {
    return new Allocation(
      checked(() => native().allocateOnSpot(opened, size)),
      device,
      size,
    ).retain();
  }

  /** Whether the caller, who has retained, is the only one who may use the memory. */
  get isUnshared(): boolean {
    return this.#users === 1 && !this.#wasShared && native().isHeldOnce(this.#handle);
  }

  /** Another thread may come for the memory as long as anything holds it, however often it has been received. */
  noteShared(): void {
    this.#wasShared = true;
  }

  /** Its address. CLOSED where nobody asked before it was freed. */
  get pointer(): bigint {
    this.#pointer ??= checked(() => native().pointerOf(this.#handle));
    return this.#pointer;
  }

  /** For calls of the addon, by a user that has retained. */
  get handle(): NativeAllocation {
    return this.#handle;
  }

  /** Adds a user. CLOSED after the last one has released it, which a copier may try after its request has ended. */
  retain(): this {
    if (this.#released)
      throw new FastSafetensorsError('CLOSED', 'this memory was freed: the load that it was for has ended');
    ++this.#users;
    return this;
  }

  /** Removes a user; the last one frees the allocation, on the thread `fst-free`. */
  release(): void {
    if (--this.#users > 0) return;
    this.#released = true;
    this.#windows = []; // what was made of them holds the memory by itself
    native().release(this.#handle);
  }

  /**
   * Copies bytes to `offset`, off the event loop; `landed` is called for each piece that has arrived. For a user that
   * has retained. The caller has checked the range, and does not change the bytes until the promise settles.
   * INVALID_ARGUMENT when their buffer is resized or transferred meanwhile.
   */
  async write(offset: number, bytes: Uint8Array, landed?: (offset: number, length: number) => void): Promise<void> {
    const { byteLength } = bytes;
    for (let at = 0; at < byteLength; at += WRITE_PIECE) {
      const length = Math.min(WRITE_PIECE, byteLength - at);
      if (bytes.byteLength !== byteLength) throw vanished(byteLength);
      await settled(native().writeAllocation(this.#handle, offset + at, bytes.subarray(at, at + length)));
      landed?.(offset + at, length);
    }
  }

  /**
   * A typed array over bytes of host memory, at least one; its ArrayBuffer holds a reference of its own. That of a
   * short array begins before it and ends behind it.
   */
  array(ArrayType: TypedArrayConstructor, offset: number, length: number): TypedArrayOf {
    const element = ArrayType.BYTES_PER_ELEMENT;
    // Not made natively: under jest such an array would be of another realm.
    if (length > SHARED || offset % element !== 0) return new ArrayType(this.arrayBuffer(offset, length));
    const window = Math.floor(offset / WINDOW);
    const begin = window * WINDOW;
    let buffer = this.#windows[window];
    if (!buffer?.byteLength) {
      // None yet, or one that was detached: what it had belongs to somebody else.
      buffer = this.arrayBuffer(begin, Math.min(WINDOW + SHARED, this.size - begin));
      this.#windows[window] = buffer;
    }
    return new ArrayType(buffer, offset - begin, length / element);
  }

  /** A new ArrayBuffer over bytes of host memory, at least one; it holds a reference of its own. */
  arrayBuffer(offset: number, length: number): ArrayBuffer {
    return checked(() => native().arrayBufferOf(this.#handle, offset, length));
  }
}

/** The error for bytes whose buffer was resized or transferred. */
export function vanished(byteLength: number): InvalidArgumentError {
  return new InvalidArgumentError(
    `write: the buffer of the ${byteLength} bytes was resized or transferred before they were written; ` +
      'leave it alone until the promise settles',
  );
}
