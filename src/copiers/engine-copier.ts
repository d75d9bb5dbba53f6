import { FastSafetensorsError } from '../base/errors.js';
import { afterRunning, held } from '../base/timers.js';
import { DEFAULT_STALL_TIMEOUT_MS, onAbort } from '../base/waiting.js';
import { Allocation } from '../device/allocation.js';
import { Device, openDevice } from '../device/device.js';
import { checked, native, settled } from '../native/addon.js';
import type { NativeEngine } from '../native/core.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { EngineLoad } from '../transfer/engine-load.js';
import { Plan } from '../transfer/plan.js';
import { openUnified } from './availability.js';
import type { Copier, CopyRequest } from './copier.js';
import { AllocationDestination } from './destination.js';
import { ENGINE, type EngineConstructor, type EngineSpec } from './engine-spec.js';

const HOST = Device.parse('cpu');

/** A copier of this package behind the contract of copiers, for use without a loader. */
class EngineCopier implements Copier<Promise<void>> {
  readonly #spec: EngineSpec;
  readonly #metadata: SafeTensorsMetadata;
  readonly #device: Device;
  #engine: Promise<NativeEngine> | undefined;
  #hostEngine: Promise<NativeEngine> | undefined; // for destinations of the user's own
  #closed = false;

  constructor(spec: EngineSpec, metadata: SafeTensorsMetadata, device: Device) {
    this.#spec = spec;
    this.#metadata = metadata;
    this.#device = device;
  }

  submitIo(request: CopyRequest): Promise<void> {
    if (this.#closed) throw new FastSafetensorsError('CLOSED', 'the copier is closed');
    const pending = this.#copy(request);
    pending.catch(() => {}); // waitIo reports it, if anybody calls it
    return pending;
  }

  waitIo(pending: Promise<void>): Promise<void> {
    return pending;
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const opening of [this.#engine, this.#hostEngine]) {
      const engine = await opening?.catch(() => undefined);
      if (engine) await settled(native().closeEngine(engine));
    }
  }

  async #copy({ destination, ranges: given, signal }: CopyRequest): Promise<void> {
    signal.throwIfAborted();
    // Copied, so that what is checked is what is used.
    const ranges = given.map(({ fileOffset, length, destOffset }) => ({ fileOffset, length, destOffset }));
    if (destination instanceof AllocationDestination) {
      this.#engine ??= this.#open(this.#device);
      const engine = await this.#engine;
      return destination.fill(ranges, (allocation, landed) =>
        this.#load(engine, allocation, ranges, signal, () => landed(0, 0)),
      );
    }
    // The user's own destination takes bytes through its `write` only: they are read into host memory first.
    this.#hostEngine ??= this.#open(HOST);
    const engine = await this.#hostEngine;
    for (const { fileOffset, length, destOffset } of ranges) {
      if (length === 0) continue;
      await Allocation.during(HOST, length, async (allocation) => {
        await this.#load(engine, allocation, [{ fileOffset, length, destOffset: 0 }], signal);
        await destination.write(destOffset, new Uint8Array(allocation.arrayBuffer(0, length)));
      });
    }
  }

  async #open(device: Device): Promise<NativeEngine> {
    // Not memory that the host shares, as that was allocated elsewhere: a unified copier uses slots here.
    const handle = await openDevice(device, false, this.#spec.near);
    if (this.#spec.unified && device.type === 'cuda') await openUnified(device);
    const files = [this.#metadata.path];
    const { reader, engine } = this.#spec.resolveForFiles ? (await this.#spec.resolveForFiles(files)).spec : this.#spec;
    return checked(() => native().createEngine([handle], reader, engine));
  }

  /**
   * Resolves or rejects when nothing writes to the memory any more. After an abort the event loop stays alive for what
   * is in flight as long as a loader's close() waits.
   */
  async #load(
    engine: NativeEngine,
    allocation: Allocation,
    ranges: CopyRequest['ranges'],
    signal: AbortSignal,
    progress?: () => void,
  ): Promise<void> {
    const sorted = [...ranges].sort((a, b) => a.fileOffset - b.fileOffset);
    const plan = Plan.ofRanges(this.#metadata, allocation.size, sorted);
    const { stallTimeoutMs = DEFAULT_STALL_TIMEOUT_MS } = this.#spec.engine;
    const load = await held(EngineLoad.start(engine, plan, allocation.device, { stallTimeoutMs }, [allocation]));
    let waits = true;
    let stopLimit = (): void => {};
    const cancel = (): void => {
      load.cancel(); // which wakes those who wait
      stopLimit = afterRunning(stallTimeoutMs, () => {
        waits = false;
        load.cancel();
      });
    };
    const stop = onAbort(signal, cancel);
    if (signal.aborted) cancel();
    try {
      while (!load.drained) {
        await (waits ? held(load.wait()) : load.wait());
        progress?.();
      }
      signal.throwIfAborted();
      if (load.error) throw load.error;
    } finally {
      stop();
      stopLimit();
      load.end();
    }
  }
}

/** The constructor of a copier that is an engine. */
export function engineConstructor(spec: EngineSpec): EngineConstructor {
  const make = (metadata: SafeTensorsMetadata, device: Device): Copier =>
    new EngineCopier(spec, metadata, device) as Copier;
  return Object.assign(make, { [ENGINE]: spec });
}
