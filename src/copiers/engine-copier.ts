import { FastSafetensorsError } from '../base/errors.js';
import { Device, openDevice } from '../device/device.js';
import { Memory } from '../device/memory.js';
import { checked, native, settled, statusError } from '../native/addon.js';
import type { NativeEngine, NativePlan } from '../native/core.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { openUnified } from './availability.js';
import type { Copier, CopyRequest } from './copier.js';
import { MemoryDestination } from './destination.js';
import { ENGINE, type EngineConstructor, type EngineSpec } from './engine-spec.js';

/** A built-in copier through the copier interface, for who drives it without a loader. */
class EngineCopier implements Copier<Promise<void>> {
  readonly #spec: EngineSpec;
  readonly #metadata: SafeTensorsMetadata;
  readonly #device: Device;
  #engine: Promise<NativeEngine> | undefined;
  #hostEngine: Promise<NativeEngine> | undefined; // for destinations that are not ours
  #closed = false;

  constructor(spec: EngineSpec, metadata: SafeTensorsMetadata, device: Device) {
    this.#spec = spec;
    this.#metadata = metadata;
    this.#device = device;
  }

  submitIo(request: CopyRequest): Promise<void> {
    if (this.#closed) throw new FastSafetensorsError('CLOSED', 'the copier is closed');
    const pending = this.#copy(request);
    pending.catch(() => {}); // waitIo tells; nobody may call it
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
    const ranges = given.map(({ fileOffset, length, destOffset }) => ({ fileOffset, length, destOffset })); // as checked
    if (destination instanceof MemoryDestination) {
      this.#engine ??= this.#open(this.#device);
      const engine = await this.#engine;
      return destination.fill(ranges, (memory, landed) =>
        this.#transfer(engine, memory, ranges, signal, () => landed(0, 0)),
      );
    }
    this.#hostEngine ??= this.#open(Device.parse('cpu'));
    const engine = await this.#hostEngine;
    for (const { fileOffset, length, destOffset } of ranges) {
      if (length === 0) continue;
      const host = Device.parse('cpu');
      const memory = new Memory(
        await settled(native().allocate(await openDevice(host), length)),
        host,
        length,
      ).retain();
      try {
        await this.#transfer(engine, memory, [{ fileOffset, length, destOffset: 0 }], signal);
        await destination.write(destOffset, new Uint8Array(memory.arrayBuffer(0, length)));
      } finally {
        memory.release();
      }
    }
  }

  async #open(device: Device): Promise<NativeEngine> {
    // Memory that somebody else allocated is no shared memory: a unified copier takes slots here.
    const handle = await openDevice(device);
    if (this.#spec.unified && device.type === 'cuda') await openUnified(device);
    const files = [this.#metadata.path];
    const { reader, engine } = this.#spec.resolveForFiles ? (await this.#spec.resolveForFiles(files)).spec : this.#spec;
    return checked(() => native().createEngine(handle, reader, engine));
  }

  async #transfer(
    engine: NativeEngine,
    memory: Memory,
    ranges: CopyRequest['ranges'],
    signal: AbortSignal,
    progress?: () => void,
  ): Promise<void> {
    const identity = this.#metadata.identity;
    if (!identity)
      throw new FastSafetensorsError('INVALID_ARGUMENT', 'a header made from a buffer names no file to copy from');
    const sorted = [...ranges].sort((a, b) => a.fileOffset - b.fileOffset);
    const plan: NativePlan = {
      files: [{ path: this.#metadata.path, identity }],
      allocationSizes: Float64Array.of(memory.size),
      allocationBatches: new Uint32Array(1),
      itemFiles: new Uint32Array(sorted.length),
      itemAllocations: new Uint32Array(sorted.length),
      itemOffsets: Float64Array.from(sorted, (range) => range.fileOffset),
      itemLengths: Float64Array.from(sorted, (range) => range.length),
      itemDestinations: Float64Array.from(sorted, (range) => range.destOffset),
      memory: [memory.handle],
    };
    const load = checked(() => native().startTransferSync(engine, plan, {}));
    const cancel = (): void => native().cancelTransfer(engine, load);
    signal.addEventListener('abort', cancel, { once: true });
    try {
      const state = new Float64Array(6);
      for (;;) {
        native().pollTransfer(load, state);
        const error = native().transferError(load);
        if (state[4] === 1) {
          signal.throwIfAborted();
          if (error) throw statusError(error);
          return;
        }
        await settled(native().waitTransfer(load));
        progress?.();
      }
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }
}

/** The constructor of a copier that is a reader behind the engine. */
export function engineConstructor(spec: EngineSpec): EngineConstructor {
  const make = (metadata: SafeTensorsMetadata, device: Device): Copier =>
    new EngineCopier(spec, metadata, device) as Copier;
  return Object.assign(make, { [ENGINE]: spec });
}
