import { checkOptions, fail, takesAtMost } from '../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { Device, type DeviceString, openDevice } from '../device/device.js';
import { checked, native, settled } from '../native/addon.js';
import type { NativeCommunicator } from '../native/core.js';

const ID_BYTES = 128;

/** How the ranks of a group find each other. */
export interface NcclOptions {
  /** What one of them, usually rank 0, had of ncclUniqueId(), and gave to the others by a channel of yours. */
  readonly uniqueId: Uint8Array;
}

/** Those of LoaderOptions that broadcasts have to do with, not checked. */
type Options = Readonly<Partial<Record<'device' | 'devices' | 'deviceMemoryBudget' | 'copier', unknown>>>;

const CHECKS = {
  uniqueId: (value: unknown, name: string): void => {
    if (!(ArrayBuffer.isView(value) && value.byteLength === ID_BYTES))
      fail(name, `the ${ID_BYTES} bytes that ncclUniqueId() gives`, value);
  },
};

/** A rank's end of the broadcasts of its group, for `pg.broadcast`: of one GPU, for any number of loaders. */
export class NcclBroadcast {
  readonly #id: Uint8Array;
  #opened: { readonly device: string; readonly communicator: Promise<NativeCommunicator> } | undefined;
  #turn: Promise<void> = Promise.resolve();
  #closed: Promise<void> | undefined;

  /** nccl() makes it. @internal */
  constructor(uniqueId: Uint8Array) {
    // Any view of 128 bytes; the caller's may change.
    this.#id = new Uint8Array(uniqueId.buffer, uniqueId.byteOffset, ID_BYTES).slice();
  }

  /** INVALID_ARGUMENT for options of a loader that broadcasts have no part in. @internal */
  check(options: Options): void {
    const { device, devices, deviceMemoryBudget, copier } = options;
    if (devices !== undefined || typeof device !== 'string' || Device.parse(device as DeviceString).type === 'cpu')
      fail('device', "that of one GPU, 'cuda:0', as pg.broadcast is given", devices ?? device ?? 'cpu');
    if (copier === 'unified')
      throw new InvalidArgumentError("copier: expected another than 'unified', as pg.broadcast is given");
    if (deviceMemoryBudget !== undefined) {
      const message =
        'deviceMemoryBudget: expected none, as pg.broadcast is given: what ranks get of each other is not';
      throw new InvalidArgumentError(`${message} counted; leave out one of the two`);
    }
  }

  /** Of this rank. Rejects with CLOSED, INVALID_ARGUMENT for a second device, DEVICE_UNAVAILABLE. @internal */
  async communicator(device: Device, rank: number, size: number): Promise<NativeCommunicator> {
    if (this.#closed) throw new FastSafetensorsError('CLOSED', 'pg.broadcast is closed');
    const name = device.toString();
    this.#opened ??= {
      device: name,
      communicator: openDevice(device).then((opened) =>
        checked(() => native().openCommunicator(opened, this.#id, rank, size)),
      ),
    };
    if (this.#opened.device === name) return this.#opened.communicator;
    const message = `pg.broadcast is that of ${this.#opened.device}, and this loader's device is ${name}`;
    throw new InvalidArgumentError(`${message}; each GPU of a process is a rank with an nccl() of its own`);
  }

  /**
   * Resolves when earlier calls of all ranks have left, with what leaves: those of all ranks have to meet in the same
   * order. @internal
   */
  enter(): Promise<() => void> {
    const before = this.#turn;
    let leave = (): void => {};
    this.#turn = new Promise((resolve) => {
      leave = resolve;
    });
    return before.then(() => leave);
  }

  /**
   * Leaves the group, and waits at most five seconds for other ranks that still have something of this one. What is in
   * flight rejects with CLOSED. A second call waits for the first.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const communicator = await this.#opened?.communicator.catch(() => undefined);
    if (communicator) await settled(native().closeCommunicator(communicator));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * For `pg.broadcast`: tensors that every rank has whole are read once by all ranks together, and broadcast by NCCL. See
 * docs/ranks.md. INVALID_ARGUMENT.
 */
export function nccl(options: NcclOptions): NcclBroadcast {
  takesAtMost(1, arguments, 'nccl');
  checkOptions(options, CHECKS);
  if (options.uniqueId === undefined) fail('uniqueId', `the ${ID_BYTES} bytes that ncclUniqueId() gives`, undefined);
  return new NcclBroadcast(options.uniqueId);
}

/**
 * A new id of 128 bytes, by which the ranks of one group find each other. The process that makes it has to be one of
 * them, and live until all have. COPIER_UNAVAILABLE where there is no NCCL, CUDA_ERROR.
 */
export async function ncclUniqueId(): Promise<Uint8Array> {
  takesAtMost(0, arguments, 'ncclUniqueId');
  return new Uint8Array(await settled(native().newNcclId()));
}
