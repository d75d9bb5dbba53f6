import { InvalidArgumentError } from '../base/errors.js';
import { native, settled } from '../native/addon.js';
import type { NativeDevice } from '../native/core.js';

/** 'cpu', 'cuda', 'cuda:N', 'gpu' or 'gpu:N'; without a number the GPU is number 0. */
export type DeviceString = string;

/** Where tensors live. Immutable; equal devices have equal strings. */
export class Device {
  readonly type: 'cpu' | 'cuda';
  /** The GPU's number among those that this process sees; null for the cpu. */
  readonly index: number | null;

  private constructor(type: 'cpu' | 'cuda', index: number | null) {
    this.type = type;
    this.index = index;
  }

  /** INVALID_ARGUMENT when `text` is no DeviceString. */
  static parse(text: DeviceString): Device {
    if (text === 'cpu') return new Device('cpu', null);
    const match = typeof text === 'string' ? /^(?:cuda|gpu)(?::(0|[1-9]\d{0,3}))?$/.exec(text) : null;
    if (!match) {
      throw new InvalidArgumentError(
        `device: expected 'cpu', 'cuda', 'cuda:N', 'gpu' or 'gpu:N', found ${typeof text === 'string' ? JSON.stringify(text) : typeof text}`,
      );
    }
    return new Device('cuda', Number(match[1] ?? 0));
  }

  toString(): string {
    return this.type === 'cpu' ? 'cpu' : `cuda:${this.index}`;
  }
}

/**
 * Opens a device off the event loop, once a process. `unified`: a GPU's memory that the host can fill as well. DEVICE_UNAVAILABLE says what was tried.
 */
export function openDevice(device: Device, unified = false): Promise<NativeDevice> {
  return settled(native().openDevice(device.toString(), unified));
}
