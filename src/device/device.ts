import { fail, takesAtMost } from '../base/checks.js';
import { native, settled } from '../native/addon.js';
import type { NativeDevice } from '../native/core.js';

/**
 * 'cpu', 'cuda', 'cuda:N', 'gpu' or 'gpu:N', in any case; 'cuda' and 'gpu' mean the same, and number 0 where none is
 * given. 'cpu:0' is 'cpu'.
 */
export type DeviceString = string;

/**
 * structuredClone() and postMessage() refuse what has a symbol in an enumerable property, with the symbol's text in
 * their message. Of a tensor, whose fields are private, they would make an object without memory; so they come across
 * this one, in its device.
 */
const NOT_CLONABLE = Symbol(
  'a DeviceTensor stays in its thread: pass on tensor.share(), of which importTensors() makes a tensor of the same ' +
    'memory there, or the bytes that `await tensor.toHost()` copies, and String(device) for a Device; what you passed',
);

/** Where tensors live: host memory or that of one GPU. Immutable; equal devices have equal strings. */
export class Device {
  readonly type: 'cpu' | 'cuda';
  /** The GPU's number among those that CUDA shows this process; null for 'cpu'. */
  readonly index: number | null;
  /** @internal */
  readonly memory = NOT_CLONABLE;

  private constructor(type: 'cpu' | 'cuda', index: number | null) {
    this.type = type;
    this.index = index;
  }

  /** The device that a text names, whether it exists or not. INVALID_ARGUMENT for what is no DeviceString. */
  static parse(text: DeviceString): Device {
    takesAtMost(1, arguments, 'Device.parse');
    const match = typeof text === 'string' ? /^(?:cpu(?::0)?|(?:cuda|gpu)(?::(0|[1-9]\d{0,3}))?)$/i.exec(text) : null;
    if (!match) fail('device', "'cpu', 'cuda', 'cuda:N', 'gpu' or 'gpu:N'", text);
    if (/^cpu/i.test(text)) return new Device('cpu', null);
    return new Device('cuda', Number(match[1] ?? 0));
  }

  /** 'cpu' or 'cuda:N'. */
  toString(): string {
    return this.type === 'cpu' ? 'cpu' : `cuda:${this.index}`;
  }

  /** What console.log() shows. @internal */
  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return `Device { ${this} }`;
  }
}

/**
 * Opens a device off the event loop, once per process. `unified`: one whose allocations the host can fill as well.
 * `near`: staging lies on the NUMA node of the GPU. DEVICE_UNAVAILABLE, saying what was tried.
 */
export function openDevice(device: Device, unified = false, near = true): Promise<NativeDevice> {
  return settled(native().openDevice(device.toString(), unified, near));
}
