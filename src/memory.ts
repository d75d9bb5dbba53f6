import type { Device } from './device.js';
import { FastSafetensorsError } from './errors.js';
import { checked, type NativeMemory, native } from './native.js';

/**
 * One allocation of tensor memory. It is given back when the last of its users has released it, or when it is collected: nobody can hold a pointer into freed
 * memory, whatever the order of calls. One native handle an allocation, none a tensor.
 */
export class Memory {
  readonly device: Device;
  readonly size: number;
  readonly pointer: bigint;
  #handle: NativeMemory;
  #users = 0;
  #released = false;

  constructor(handle: NativeMemory, device: Device, size: number) {
    this.#handle = handle;
    this.device = device;
    this.size = size;
    this.pointer = native().pointerOf(handle);
  }

  /** The native side. Only for a user that has retained. */
  get handle(): NativeMemory {
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

  /** A new ArrayBuffer over the bytes, which holds a reference of its own. Host memory only; `length` > 0. */
  arrayBuffer(offset: number, length: number): ArrayBuffer {
    return checked(() => native().arrayBufferOf(this.#handle, offset, length));
  }
}
