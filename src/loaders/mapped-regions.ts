import { DTYPE_BITS, DTYPE_NAMES } from '../base/dtype.js';
import { after, milliseconds } from '../base/timers.js';
import { Allocation } from '../device/allocation.js';
import { Device } from '../device/device.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { native } from '../native/addon.js';
import type { NativeDevice, NativeMappedFile } from '../native/core.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { MAPPED_FROM } from './mapping.js';

const HOST = Device.parse('cpu');
/** What of a file is mapped together: little enough for a writer to wait for, a tenth of a second. */
const REGION_BYTES = 64 * 1024 * 1024;
/** Of all files together; the oldest goes for a new one. */
const MOST_REGIONS = 16;
/** So many different tensors of a region are read before it is mapped: that costs as much as copying a quarter. */
const READS_BEFORE = 64;
/** How long what was in memory is believed to be. */
const BELIEVED_MS = 1000;
/** A region of which nothing was handed out for so long is dropped: it keeps pages, and makes writers wait. */
const IDLE_MS = 5000;
/** What could not be mapped is not tried again before. */
const AGAIN_MS = 10_000;

/** Bytes of an element by the number of its dtype, at least 1: at a multiple of which a view has to lie. */
const ALIGNMENT = Uint8Array.from(DTYPE_NAMES, (dtype) => Math.max(1, DTYPE_BITS[dtype] >> 3));

/** A tensor by its header and its index in that. */
export interface Found {
  readonly metadata: SafeTensorsMetadata;
  readonly index: number;
  readonly name: string;
}

/** A part of a file, brought into memory and mapped. */
interface Region {
  readonly parts: MappedParts;
  readonly file: NativeMappedFile;
  /** Over all of it, retained. */
  readonly allocation: Allocation;
  /** The byte of the file that it begins with, and the one behind it. */
  readonly begin: number;
  readonly end: number;
  /** The index of the first tensor that begins in it, and which of them were handed out, from that one on. */
  readonly first: number;
  readonly given: Uint8Array;
  /** Tensors that were not. */
  left: number;
  /** When one was. */
  usedMs: number;
  /** When all of it was in memory, and in which turn its lease was held. */
  seenMs: number;
  turn: number;
  looking: boolean;
}

/** What may become a region. */
interface Part {
  region: Region | undefined;
  /** Indices of tensors that were read of it. */
  readonly read: Set<number>;
  /** Infinity while it is being mapped. */
  notBeforeMs: number;
}

/** Those of one file. */
interface MappedParts {
  readonly parts: (Part | undefined)[];
  /** In which burst the path meant the file. */
  burst: number;
}

/**
 * Small tensors as views of their file, where that is mapped: nothing is copied. A region of a file is mapped when
 * many tensors of it have been read, off the event loop, and what is handed out of it was all in memory a second ago:
 * handing it out waits for no disk. Who touches a page that was evicted since then does, as with all that is mapped.
 * A tensor is a view once; who asks again gets a copy, since somebody may have written to the view.
 */
export class MappedRegions {
  readonly #files = new Map<SafeTensorsMetadata, MappedParts>();
  readonly #mapped = new Set<Region>(); // oldest first
  #working: Promise<void> = Promise.resolve();
  #closed = false;
  // Calls between which no promise has settled: one look at their file serves them all.
  #burst = 0;
  #inBurst = false;
  #turn = 0;
  #nowMs = 0;
  #stopWatch: (() => void) | undefined; // for what is idle

  /** To be called in each turn of the event loop, before its first view. */
  noteTurn(): void {
    ++this.#turn;
    this.#nowMs = milliseconds();
  }

  /** Views of tensors, in the order in which they are asked for; undefined where one has to be read. */
  views(wanted: readonly Found[]): DeviceTensor[] | undefined {
    const regions: Region[] = [];
    for (const found of wanted) {
      const region = this.#regionOf(found);
      if (!region) return undefined;
      regions.push(region);
    }
    return wanted.map((found, i) => this.#hand(found, regions[i]!));
  }

  /** As views(), of one. */
  view(found: Found): DeviceTensor | undefined {
    const region = this.#regionOf(found);
    return region && this.#hand(found, region);
  }

  #regionOf({ metadata, index }: Found): Region | undefined {
    const parts = this.#files.get(metadata);
    if (!parts) return undefined;
    const { packed, dataStart } = metadata;
    const begin = dataStart + packed.begins[index]!;
    const place = Math.floor(begin / REGION_BYTES);
    const region = parts.parts[place]?.region;
    if (region?.given[index - region.first] !== 0) return undefined;
    const end = dataStart + packed.ends[index]!;
    if (end === begin || end > region.end || begin % ALIGNMENT[packed.dtypes[index]!]! !== 0) return undefined;
    if (this.#nowMs - region.seenMs > BELIEVED_MS) {
      this.#lookAgain(region);
      return undefined;
    }
    const looks = !this.#inBurst || parts.burst !== this.#burst;
    if (!looks && region.turn === this.#turn) return region;
    // A writer who was let in has moved the file's time. That the lease is broken is seen a turn later, if need be.
    if (!native().isRegionCurrent(region.file, looks)) {
      this.#dropAll(parts); // who reads it finds out what is the matter
      return undefined;
    }
    region.turn = this.#turn;
    parts.burst = this.#burst;
    if (!this.#inBurst) {
      this.#inBurst = true;
      void RESOLVED.then(this.#endBurst);
    }
    return region;
  }

  readonly #endBurst = (): void => {
    ++this.#burst;
    this.#inBurst = false;
  };

  #hand({ metadata, index, name }: Found, region: Region): DeviceTensor {
    const { begins, ends, dtypes } = metadata.packed;
    const begin = begins[index]!;
    const place = metadata.dataStart + begin - region.begin;
    const dtype = DTYPE_NAMES[dtypes[index]!]!;
    region.given[index - region.first] = 1;
    region.usedMs = this.#nowMs;
    const shape = metadata.shapeAt(index);
    const tensor = new DeviceTensor(name, dtype, shape, ends[index]! - begin, HOST, region.allocation, place);
    if (--region.left === 0) this.#drop(region);
    return tensor;
  }

  /** Counts tensors that were copied: maps regions that many are read from. `most`: bytes of one. */
  noteCopied(wanted: readonly Found[], device: NativeDevice, most: number): void {
    for (const { metadata, index } of wanted) {
      const place = Math.floor((metadata.dataStart + metadata.packed.begins[index]!) / REGION_BYTES);
      const file = this.#files.get(metadata) ?? { parts: [], burst: -1 };
      this.#files.set(metadata, file);
      const part = file.parts[place] ?? { region: undefined, read: new Set(), notBeforeMs: 0 };
      file.parts[place] = part;
      if (part.region || this.#nowMs < part.notBeforeMs) continue;
      part.read.add(index);
      if (part.read.size < READS_BEFORE) continue;
      part.read.clear();
      part.notBeforeMs = Number.POSITIVE_INFINITY;
      this.#await(this.#map(metadata, file, place, device, most));
    }
  }

  #await(work: Promise<void>): void {
    this.#working = Promise.all([this.#working, work]).then(() => {});
  }

  async #map(
    metadata: SafeTensorsMetadata,
    parts: MappedParts,
    place: number,
    device: NativeDevice,
    most: number,
  ): Promise<void> {
    const { path, identity, sizeBytes, dataStart, packed } = metadata;
    const begin = place * REGION_BYTES;
    const end = Math.min(begin + REGION_BYTES + most, sizeBytes);
    const part = parts.parts[place]!;
    const mapped =
      end - begin < MAPPED_FROM
        ? null
        : await native()
            .mapRegion(device, path, identity!, begin, end)
            .catch(() => null); // who reads a tensor of it will say what is wrong
    part.notBeforeMs = mapped ? 0 : milliseconds() + AGAIN_MS;
    if (!mapped) return;
    const allocation = new Allocation(mapped.allocation, HOST, end - begin).retain();
    const first = lowerBound(packed.begins, begin - dataStart);
    const given = new Uint8Array(lowerBound(packed.begins, begin + REGION_BYTES - dataStart) - first);
    const seenMs = milliseconds();
    const region: Region = {
      parts,
      file: mapped.file,
      allocation,
      begin,
      end,
      first,
      given,
      left: given.length,
      usedMs: seenMs,
      seenMs,
      turn: -1,
      looking: false,
    };
    part.region = region;
    this.#mapped.add(region);
    const [oldest] = this.#mapped;
    if (this.#closed) this.#drop(region);
    else if (this.#mapped.size > MOST_REGIONS) this.#drop(oldest!);
    if (!this.#closed) this.#watch();
  }

  /** Drops what is idle, as long as anything is mapped. */
  #watch(): void {
    if (this.#stopWatch || this.#mapped.size === 0) return;
    let oldestMs = Number.POSITIVE_INFINITY;
    for (const { usedMs } of this.#mapped) oldestMs = Math.min(oldestMs, usedMs);
    this.#stopWatch = after(oldestMs + IDLE_MS - milliseconds(), () => {
      this.#stopWatch = undefined;
      const before = milliseconds() - IDLE_MS;
      for (const region of this.#mapped) if (region.usedMs <= before) this.#drop(region);
      this.#watch();
    });
  }

  #lookAgain(region: Region): void {
    if (region.looking) return;
    region.looking = true;
    const looking = async (): Promise<void> => {
      const resident = await native()
        .isRegionResident(region.file, region.begin, region.end)
        .catch(() => false);
      region.looking = false;
      if (resident) region.seenMs = milliseconds();
      else this.#drop(region);
    };
    this.#await(looking());
  }

  #dropAll({ parts }: MappedParts): void {
    for (const part of parts) if (part?.region) this.#drop(part.region);
  }

  /** Tensors of it stay valid. */
  #drop(region: Region): void {
    if (!this.#mapped.delete(region)) return;
    region.parts.parts[region.begin / REGION_BYTES]!.region = undefined;
    // In this order: the allocation is freed off the event loop, and unmaps the file as its last owner.
    native().releaseMapping(region.file);
    region.allocation.release();
  }

  /** Ends it; tensors stay valid. */
  close(): void {
    this.#closed = true;
    this.#stopWatch?.();
    for (const region of this.#mapped) this.#drop(region);
    this.#files.clear();
  }

  /** Resolves when nothing is in progress. */
  async settled(): Promise<void> {
    await this.#working;
  }
}

const RESOLVED = Promise.resolve();

/** The first index of ascending numbers of at least `least`. */
function lowerBound(numbers: ArrayLike<number>, least: number): number {
  let [from, to] = [0, numbers.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (numbers[middle]! < least) from = middle + 1;
    else to = middle;
  }
  return from;
}
