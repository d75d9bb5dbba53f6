import { DTYPE_BITS, DTYPE_NAMES } from '../base/dtype.js';
import { milliseconds } from '../base/timers.js';
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
/** So many tensors of a region are read before it is mapped, which costs as much as copying a quarter of it. */
const READS_BEFORE = 64;
/** How long what was in memory is believed to be. */
const BELIEVED_MS = 1000;

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
  readonly file: NativeMappedFile;
  /** Over all of it, retained. */
  readonly allocation: Allocation;
  /** The byte of the file that it begins with, and the one behind it. */
  readonly begin: number;
  readonly end: number;
  /** The index of the first tensor that begins in it, and which of them were handed out, from that one on. */
  readonly first: number;
  readonly given: Uint8Array;
  /** When all of it was in memory, and in which turn its lease was held. */
  seenMs: number;
  turn: number;
  looking: boolean;
}

/** The regions of one file. */
interface MappedParts {
  readonly regions: (Region | undefined)[];
  /** Tensors to be read of each before it is mapped. */
  readonly missing: number[];
  /** In which burst the path meant the file. */
  burst: number;
}

/**
 * Small tensors as views of their file, where that is mapped: nothing is copied. A region of a file is mapped when many
 * tensors of it have been read, off the event loop, and what is handed out of it was all in memory a second ago: the
 * event loop waits for no disk. A tensor is a view once; who asks again gets a copy, since somebody may have written to
 * the view.
 */
export class MappedRegions {
  readonly #files = new Map<SafeTensorsMetadata, MappedParts>();
  readonly #mapped = new Set<Region>(); // oldest first
  #working: Promise<unknown> = Promise.resolve();
  #closed = false;
  // Calls between which no promise has settled: one look at their file serves them all.
  #burst = 0;
  #inBurst = false;
  #turn = 0;
  #nowMs = 0;

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
    const region = parts.regions[place];
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
      this.#drop(region); // who reads it finds out what is the matter
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
    const shape = metadata.shapeAt(index);
    return new DeviceTensor(name, dtype, shape, ends[index]! - begin, HOST, region.allocation, place);
  }

  /** Counts tensors that were copied: maps regions that many are read from. `most`: bytes of one. */
  noteCopied(wanted: readonly Found[], device: NativeDevice, most: number): void {
    for (const { metadata, index } of wanted) {
      const place = Math.floor((metadata.dataStart + metadata.packed.begins[index]!) / REGION_BYTES);
      const parts = this.#files.get(metadata) ?? { regions: [], missing: [], burst: -1 };
      this.#files.set(metadata, parts);
      if (parts.regions[place]) continue;
      parts.missing[place] = (parts.missing[place] ?? READS_BEFORE) - 1;
      if (parts.missing[place] !== 0) continue;
      this.#working = Promise.all([this.#working, this.#map(metadata, parts, place, device, most)]);
    }
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
    parts.missing[place] = READS_BEFORE ** 2; // where it cannot be mapped, another time
    if (end - begin < MAPPED_FROM) return;
    const mapped = await native()
      .mapRegion(device, path, identity!, begin, end)
      .catch(() => null); // who reads a tensor of it will say what is wrong
    if (!mapped) return;
    const allocation = new Allocation(mapped.allocation, HOST, end - begin).retain();
    const first = lowerBound(packed.begins, begin - dataStart);
    const given = new Uint8Array(lowerBound(packed.begins, begin + REGION_BYTES - dataStart) - first);
    const seenMs = milliseconds();
    const region = { file: mapped.file, allocation, begin, end, first, given, seenMs, turn: -1, looking: false };
    parts.regions[place] = region;
    parts.missing[place] = READS_BEFORE;
    this.#mapped.add(region);
    const [oldest] = this.#mapped;
    if (this.#closed) this.#drop(region);
    else if (this.#mapped.size > MOST_REGIONS) this.#drop(oldest!);
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
    this.#working = Promise.all([this.#working, looking()]);
  }

  /** Tensors of it stay valid. */
  #drop(region: Region): void {
    if (!this.#mapped.delete(region)) return;
    for (const { regions } of this.#files.values()) {
      const place = region.begin / REGION_BYTES;
      if (regions[place] === region) regions[place] = undefined;
    }
    region.allocation.release();
    native().releaseMapping(region.file);
  }

  /** Ends it; tensors stay valid. */
  close(): void {
    this.#closed = true;
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
