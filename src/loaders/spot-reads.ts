import { DTYPE_NAMES } from '../base/dtype.js';
import { setImmediate } from '../base/timers.js';
import { Allocation } from '../device/allocation.js';
import { Device, openDevice } from '../device/device.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { checked, native, translated } from '../native/addon.js';
import type { NativeDevice, NativeHeaderFdCache, NativeSpotFile } from '../native/core.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { alignUp } from '../transfer/plan.js';
import { type Found, MappedRegions } from './mapped-regions.js';
import type { Session } from './session.js';

const HOST = Device.parse('cpu');
/** Bytes that are read at once: 0.1 ms. */
const MOST_BYTES = 512 * 1024;
/**
 * Of the reads of one turn all but the first of at most SMALL_BYTES share allocations of BLOCK_BYTES: to make and
 * collect one takes as long as a read, and each `data` would have an ArrayBuffer of its own.
 */
const SMALL_BYTES = 64 * 1024;
const BLOCK_BYTES = 256 * 1024;
/** What one turn of the event loop reads: a millisecond or two. */
const TURN_READS = 128;
const TURN_BYTES = 4 * 1024 * 1024;
/** What a view counts among the reads of a turn. */
const VIEW = 1 / 8;

/**
 * Reads small tensors by the thread that asks, where their bytes are in memory: other threads would take several times
 * as long to be woken as the reading takes. Each file from its second load on; its descriptor stays open, one of those
 * between headers and data, which are few.
 */
export class SpotReads {
  readonly #session: Session;
  readonly #regions: MappedRegions | undefined;
  #fds: NativeHeaderFdCache | undefined;
  #device: NativeDevice | undefined;
  // null: being opened, or not to be read so. A load that was in flight when a file was opened leaves it as it is:
  // where loads follow one another, the file would be opened for ever, and nothing be read from it.
  readonly #files = new Map<SafeTensorsMetadata, NativeSpotFile | null>();
  #opening: Promise<unknown> = Promise.resolve();
  #block: Allocation | undefined; // that reads of this turn share, retained
  #used = 0; // bytes of it
  #ranges = new Float64Array(4 * 16); // of the call that reads
  #inTurn = false; // the end of this turn of the event loop will be noticed
  #reads = 0; // that it has had
  #bytes = 0;
  #waiting: { readonly reads: number; readonly bytes: number; readonly begin: () => void }[] = []; // for a later one

  constructor(session: Session) {
    this.#session = session;
    const { mmap, framework } = session.options;
    if (mmap === 'auto' || (mmap === undefined && !framework)) this.#regions = new MappedRegions();
  }

  /** A tensor at once, as a view of its file; undefined where it has to be read, or this turn has had enough. */
  view(found: Found): DeviceTensor | undefined {
    if (!this.#begins(VIEW)) return undefined;
    const tensor = this.#regions!.view(found);
    if (tensor) this.#reads += VIEW;
    return tensor;
  }

  /** As view(), of several. */
  views(wanted: readonly Found[]): DeviceTensor[] | undefined {
    if (!this.#begins(VIEW * wanted.length)) return undefined;
    const tensors = this.#regions!.views(wanted);
    if (tensors) this.#reads += VIEW * wanted.length;
    return tensors;
  }

  /** As views(), of those whose turnFor() has just resolved: this turn counts them already. */
  viewsInTurn(wanted: readonly Found[]): DeviceTensor[] | undefined {
    return this.#regions?.views(wanted);
  }

  /** Whether this turn of the event loop may have so many more reads as views. */
  #begins(reads: number): boolean {
    if (!this.#device || !this.#regions || reads === 0) return false;
    this.#noteTurn();
    return this.#waiting.length === 0 && this.#reads + reads <= TURN_READS;
  }

  /** What to wait for before read(), where this turn of the event loop has had enough of them. */
  turnFor(wanted: readonly Found[]): Promise<void> | undefined {
    if (!this.#device) return undefined;
    let bytes = 0;
    for (const { metadata, index } of wanted) bytes += metadata.packed.ends[index]! - metadata.packed.begins[index]!;
    if (bytes > MOST_BYTES) return undefined;
    this.#noteTurn();
    if (this.#waiting.length === 0 && this.#reads < TURN_READS && this.#bytes < TURN_BYTES) {
      this.#reads += wanted.length;
      this.#bytes += bytes;
      return undefined;
    }
    return new Promise((begin) => void this.#waiting.push({ reads: wanted.length, bytes, begin }));
  }

  #noteTurn(): void {
    // Also where nothing was read yet: what ends a turn twice lets twice as many in.
    if (this.#inTurn) return;
    this.#inTurn = true;
    this.#regions?.noteTurn();
    setImmediate(() => {
      this.#inTurn = false;
      this.#reads = 0;
      this.#bytes = 0;
      let begun = 0;
      for (; begun < this.#waiting.length && this.#reads < TURN_READS && this.#bytes < TURN_BYTES; ++begun) {
        const { reads, bytes, begin } = this.#waiting[begun]!;
        this.#reads += reads;
        this.#bytes += bytes;
        begin();
      }
      this.#waiting = this.#waiting.slice(begun);
      if (this.#reads > 0) this.#noteTurn();
      else this.#dropBlock();
    });
  }

  /** Tensors in one allocation, in the order in which they are asked for; undefined where a load has to read them. */
  read(wanted: readonly Found[]): DeviceTensor[] | undefined {
    if (!this.#device || wanted.length === 0) return undefined;
    const files: NativeSpotFile[] = [];
    if (this.#ranges.length < 4 * wanted.length) this.#ranges = new Float64Array(8 * wanted.length);
    const ranges = this.#ranges;
    const places: number[] = [];
    let from: SafeTensorsMetadata | undefined;
    let count = 0;
    let bytes = 0;
    for (const { metadata, index } of wanted) {
      const file = this.#files.get(metadata);
      if (!file) return undefined;
      if (metadata !== from) files.push(file);
      from = metadata;
      const { begins, ends } = metadata.packed;
      const length = ends[index]! - begins[index]!;
      const place = alignUp(bytes);
      places.push(place);
      if (length > 0) {
        ranges[4 * count] = files.length - 1;
        ranges[4 * count + 1] = metadata.dataStart + begins[index]!;
        ranges[4 * count + 2] = length;
        ranges[4 * count++ + 3] = place;
      }
      bytes = place + length;
      if (bytes > MOST_BYTES) return undefined;
    }
    const room = bytes > 0 ? this.#roomFor(bytes, this.#device) : undefined;
    try {
      if (room) {
        for (let i = 0; i < count; ++i) ranges[4 * i + 3]! += room.at;
        if (!checked(() => native().readOnSpot(room.allocation.handle, files, ranges, count))) {
          for (const { metadata } of wanted) this.#files.delete(metadata); // perhaps their descriptors are gone
          return undefined;
        }
      }
      if (room && room.allocation === this.#block) this.#used = room.at + bytes;
      this.#regions?.noteCopied(wanted, this.#device, MOST_BYTES);
      return wanted.map(({ metadata, index, name }, i) => {
        const { begins, ends, dtypes } = metadata.packed;
        const [dtype, length] = [DTYPE_NAMES[dtypes[index]!]!, ends[index]! - begins[index]!];
        const place = (room?.at ?? 0) + places[i]!;
        return new DeviceTensor(name, dtype, metadata.shapeAt(index), length, HOST, room?.allocation ?? null, place);
      });
    } finally {
      room?.allocation.release();
    }
  }

  /** Memory for a read, retained for the caller. */
  #roomFor(bytes: number, opened: NativeDevice): { allocation: Allocation; at: number } {
    if (bytes > SMALL_BYTES || this.#reads <= 1) return { allocation: Allocation.atOnce(opened, HOST, bytes), at: 0 };
    let at = alignUp(this.#used);
    if (!this.#block || at + bytes > BLOCK_BYTES) {
      at = 0;
      if (!this.#block?.isUnshared) {
        this.#dropBlock();
        this.#block = Allocation.atOnce(opened, HOST, BLOCK_BYTES);
      }
    }
    return { allocation: this.#block!.retain(), at };
  }

  #dropBlock(): void {
    this.#block?.release();
    this.#block = undefined;
  }

  /** Ends it; tensors stay valid. */
  close(): void {
    this.#dropBlock();
    this.#regions?.close();
  }

  /** After a load of tensors, which shows that their files can be read: the next ones may be read here. */
  open(wanted: readonly Found[]): void {
    this.#opening = Promise.all([this.#opening, this.#open(wanted)]).then(() => {});
  }

  /** Resolves when no file is being opened or mapped. */
  async opened(): Promise<void> {
    await this.#opening;
    await this.#regions?.settled();
  }

  async #open(wanted: readonly Found[]): Promise<void> {
    const { engines, readsHostFiles } = this.#session;
    if (!readsHostFiles) return;
    this.#fds ??= engines.newHeaderFds();
    const fds = this.#fds;
    if (!fds) return;
    for (const metadata of new Set(wanted.map(({ metadata }) => metadata))) {
      if (this.#files.has(metadata) || !metadata.identity) continue;
      this.#files.set(metadata, null);
      try {
        this.#device ??= await openDevice(HOST);
        const opened = await translated(native().openSpotFile(fds, metadata.path, metadata.identity));
        this.#files.set(metadata, opened);
      } catch {
        this.#files.delete(metadata); // who loads the next tensor of it will say what is wrong
      }
    }
  }
}
