import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { checked, native, settled } from '../native/addon.js';
import type { NativeMemory } from '../native/core.js';
import { type Device, openDevice } from './device.js';

/** Bytes that are copied out of JavaScript's memory in one turn of the event loop: some 0.1 ms. */
const WRITE_PIECE = 1024 * 1024;

/**
 * One allocation of tensor memory. It is given back when the last of its users has released it, or when it is collected: nobody can hold a pointer into freed
 * memory, whatever the order of calls. One native handle an allocation, none a tensor.
 */
export class Memory {
  readonly device: Device;
  readonly size: number;
  readonly pointer: bigint;
  #handle: NativeAllocation;
  #users = 0;
  #released = false;

  constructor(handle: NativeAllocation, device: Device, size: number) {
    this.#handle = handle;
    this.device = device;
    this.size = size;
    this.pointer = native().pointerOf(handle);
  }

  /**
   * Opens the device and allocates tensor memory of `size` bytes, not 0, on it. Retained once, for the caller to release.
   * DEVICE_UNAVAILABLE, OUT_OF_DEVICE_MEMORY, OUT_OF_HOST_MEMORY.
   */
  static async allocate(device: Device, size: number): Promise<Memory> {
    return new Memory(await settled(native().allocate(await openDevice(device), size)), device, size).retain();
  }

  /** The native side. Only for a user that has retained. */
  get handle(): NativeAllocation {
    return this.#handle;
  }

  /** CLOSED when the last user has released it: only a copier that goes on after its request has ended sees that. */
  retain(): this {
    if (this.#released)
      throw new FastSafetensorsError('CLOSED', 'this memory was given back: the load that it was for has ended');
    ++this.#users;
    return this;
  }

  release(): void {
    if (--this.#users > 0) return;
    this.#released = true;
    native().release(this.#handle);
  }

  /**
   * Copies bytes to `offset`, which is the caller's to check, in pieces: each is copied aside in its turn and written off the event loop. The bytes must not change until
   * the promise settles. Their buffer may be resized or transferred meanwhile: INVALID_ARGUMENT. Only for a user that has retained. `landed` is told of each piece.
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

  /** A new ArrayBuffer over the bytes, which holds a reference of its own. Host memory only; `length` > 0. */
  arrayBuffer(offset: number, length: number): ArrayBuffer {
    return checked(() => native().arrayBufferOf(this.#handle, offset, length));
  }
}

/** For bytes whose buffer is not what it was when they were given. */
export function vanished(byteLength: number): InvalidArgumentError {
  return new InvalidArgumentError(
    `write: the buffer of the ${byteLength} bytes was resized or transferred before they were written; leave it alone until the promise settles`,
  );
}
