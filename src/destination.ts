import type { Destination } from './copiers/copier.js';
import type { Device } from './device.js';
import { InvalidArgumentError } from './errors.js';
import type { Memory } from './memory.js';
import { native, settled } from './native.js';

/** One allocation as a copier sees it. It holds a reference until it is closed. */
export class MemoryDestination implements Destination {
  readonly memory: Memory;

  constructor(memory: Memory) {
    this.memory = memory;
  }

  get device(): Device {
    return this.memory.device;
  }

  get byteLength(): number {
    return this.memory.size;
  }

  get pointer(): bigint {
    return this.memory.pointer;
  }

  async write(destOffset: number, bytes: Uint8Array): Promise<void> {
    if (!ArrayBuffer.isView(bytes)) throw new InvalidArgumentError('write: expected a Uint8Array');
    if (!Number.isSafeInteger(destOffset) || destOffset < 0 || destOffset + bytes.byteLength > this.memory.size) {
      throw new InvalidArgumentError(
        `write: ${bytes.byteLength} bytes at offset ${destOffset} reach outside the destination of ${this.memory.size} bytes`,
      );
    }
    if (bytes.byteLength === 0) return;
    const view = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const memory = this.memory.retain();
    try {
      await settled(native().writeAllocation(memory.handle, destOffset, view));
    } finally {
      memory.release();
    }
  }
}
