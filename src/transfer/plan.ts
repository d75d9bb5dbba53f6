import type { PackedDigests } from '../base/digest.js';
import { DTYPE_NAMES, type DTypeName } from '../base/dtype.js';
import { FastSafetensorsError } from '../base/errors.js';
import { keepExample } from '../base/examples.js';
import { Turns } from '../base/timers.js';
import type { NativePlan } from '../native/core.js';
import type { NativeFileIdentity } from '../native/packed.js';
import { identitiesOf, type SafeTensorsMetadata } from '../safetensors/metadata.js';
import { placeOf } from '../safetensors/shard-set.js';
import { convertItems } from './convert-items.js';
import type { Conversion, Items, Placement, PlanInput } from './items.js';
import type { Part, PartOf } from './parts.js';

/** Bytes: frameworks adopt memory at this alignment without a copy. */
export const TENSOR_ALIGNMENT = 256;
/**
 * Bytes: allocations are cut at tensor boundaries before they become larger, so that a tensor that is kept pins little
 * other memory. A larger tensor has an allocation of its own.
 */
export const MAX_ALLOCATION = 256 * 1024 * 1024;
/** Default bytes of a batch: enough to keep a 50 GB/s store busy for 20 ms. */
export const DEFAULT_BATCH_BYTES = 1024 * 1024 * 1024;

/** The arrays of so many items, to be filled. */
export function packedItems(count: number) {
  return {
    tensors: new Uint32Array(count),
    dtypes: new Uint8Array(count),
    stored: new Uint8Array(count),
    files: new Uint32Array(count),
    allocations: new Uint32Array(count),
    offsets: new Float64Array(count),
    lengths: new Float64Array(count),
    sizes: new Float64Array(count),
    destinations: new Float64Array(count),
  };
}

/** The same in turns of the event loop: memory for a million items takes 7 ms, as it is cleared. */
async function packedItemsInTurns(count: number): Promise<ReturnType<typeof packedItems>> {
  const items = packedItems(0);
  const turns = new Turns(1);
  for (const [name, array] of Object.entries(items)) {
    Object.assign(items, { [name]: new (array.constructor as Uint8ArrayConstructor)(count) });
    if (turns.due()) await turns.take();
  }
  return items;
}

/**
 * So many items are filled and placed in one call: V8 compiles small functions that are called often, and without
 * promises, in a few milliseconds, and one that loops over all of them in 40.
 */
export const SLICE = 512;

type PackedItems = ReturnType<typeof packedItems>;

/** The wanted tensors [from, to) of a file as items from `first` + `from` on: where they lie in the file, unchanged. */
function fillItems(items: PackedItems, first: number, file: number, input: PlanInput, from: number, to: number): void {
  const { tensors, dtypes, stored, files, offsets, lengths, sizes } = items;
  const { metadata, selection } = input;
  const { begins, ends, dtypes: those } = metadata.packed;
  for (let i = from; i < to; ++i) {
    const item = first + i;
    const tensor = selection ? selection[i]! : i;
    const begin = begins[tensor]!;
    const length = ends[tensor]! - begin;
    const dtype = those[tensor]!;
    tensors[item] = tensor;
    dtypes[item] = dtype;
    stored[item] = dtype;
    files[item] = file;
    offsets[item] = metadata.dataStart + begin;
    lengths[item] = length;
    sizes[item] = length;
  }
}

function setPart({ offsets, lengths, sizes }: PackedItems, item: number, { fileOffset, length }: Part): void {
  offsets[item] = fileOffset;
  lengths[item] = length;
  sizes[item] = length;
}

/** Places items one after the other in memory: in allocations, and batches of these, of each device its own. */
class Placing {
  static {
    keepExample(new Placing([], 0));
  }

  /** By allocation. */
  readonly sizes: number[] = [];
  readonly counts: number[] = []; // items
  readonly batches: number[] = [];
  readonly devices: number[] = [];
  readonly #most: readonly number[]; // bytes of an allocation, by device, as the following
  readonly #batchBytes: number;
  readonly #allocation: number[]; // the present one
  readonly #used: number[]; // of it
  readonly #batch: number[];
  readonly #batchUsed: number[]; // of the batch's earlier allocations

  constructor(most: readonly number[], batchBytes: number) {
    this.#most = most;
    this.#batchBytes = batchBytes;
    this.#allocation = most.map(() => -1);
    this.#used = most.map(() => 0);
    this.#batch = most.map(() => 0);
    this.#batchUsed = most.map(() => 0);
  }

  /** `placed`: by tensor of their file, the device of it. */
  place(
    { tensors, sizes, allocations, destinations }: PackedItems,
    from: number,
    to: number,
    placed?: Uint16Array,
  ): void {
    for (let item = from; item < to; ++item) {
      const device = placed ? placed[tensors[item]!]! : 0;
      const size = sizes[item]!;
      let start = alignUp(this.#used[device]!);
      const batchUsed = this.#batchUsed[device]! + start;
      const batchFull = batchUsed > 0 && batchUsed + size > this.#batchBytes;
      if (batchFull || this.#allocation[device]! < 0 || (start > 0 && start + size > this.#most[device]!)) {
        this.#begin(device, batchFull);
        start = 0;
      }
      const allocation = this.#allocation[device]!;
      allocations[item] = allocation;
      destinations[item] = start;
      this.#used[device] = start + size;
      this.sizes[allocation] = start + size;
      ++this.counts[allocation]!;
    }
  }

  #begin(device: number, newBatch: boolean): void {
    if (newBatch) {
      ++this.#batch[device]!;
      this.#batchUsed[device] = 0;
    } else {
      this.#batchUsed[device]! += this.#used[device]!;
    }
    this.#allocation[device] = this.sizes.push(0) - 1;
    this.counts.push(0);
    this.batches.push(this.#batch[device]!);
    this.devices.push(device);
  }
}

type Allocated = Pick<Items, 'allocationBatches' | 'allocationSizes' | 'devices' | 'allocationDevices'>;

export interface Plan extends Items {}

/**
 * Which bytes of files go where in memory. Items are whole tensors, or parts of one. Allocations are loaded in batches,
 * in their order.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the constructor assigns all of Items.
export class Plan {
  static {
    keepExample(Plan.#placed({ ...packedItems(0), inputs: [], converts: false }, new Placing([], 0)));
  }

  readonly count: number; // of items
  readonly bytes: number; // of all items in their files
  readonly mappedBytes: number; // of them, those that are views of mapped files
  /** Whether its items may be views of mapped files: they are whole tensors. */
  readonly mappable: boolean;
  readonly deviceBytes: number; // of all allocations
  readonly batchCount: number;
  /** By item: what its bytes in the file must have. Set before the plan is loaded. */
  digests: PackedDigests | undefined;
  /** Files whose bytes were all compared with a digest. */
  proven: ReadonlySet<number> | undefined;
  readonly #firstItems: readonly number[]; // by file, for a plan of whole tensors
  readonly #counts: readonly number[] | undefined; // by allocation: its items; for a plan in the order of its files
  #ranges: Promise<Float64Array> | undefined;

  private constructor(items: Items, mappable = false, counts?: readonly number[], mappedBytes = 0) {
    Object.assign(this, items);
    this.mappable = mappable;
    this.#counts = counts;
    this.count = items.tensors.length;
    this.bytes = sumOf(items.lengths);
    this.mappedBytes = mappedBytes;
    this.deviceBytes = sumOf(items.allocationSizes);
    this.batchCount = items.allocationBatches.reduce((most, batch) => Math.max(most, batch), -1) + 1;
    this.#firstItems = firstsOf(items.inputs);
  }

  /**
   * Whole tensors, or of each the part that `partOf` says, each at TENSOR_ALIGNMENT, in batches of at most `batchBytes`
   * in memory and allocations of at most `allocationBytes` (one number, or by device of the placement); a larger tensor
   * has one of its own. With a placement, each device has allocations and batches of its own. Floating tensors become
   * `dtype`: UNSUPPORTED_DTYPE for one that cannot, unless the policy lets it stay. What `partOf` throws.
   */
  static async ofTensors(
    inputs: readonly PlanInput[],
    {
      batchBytes = Number.POSITIVE_INFINITY,
      allocationBytes = MAX_ALLOCATION,
      partOf,
      placement,
      ...conversion
    }: {
      batchBytes?: number;
      allocationBytes?: number | readonly number[];
      partOf?: PartOf;
      placement?: Placement;
    } & Conversion = {},
  ): Promise<Plan> {
    const count = inputs.map(countOf).reduce((sum, tensors) => sum + tensors, 0);
    const items = await packedItemsInTurns(count);
    const turns = new Turns(1);
    const parts = partOf && new Array<Part | null>(count).fill(null);
    const devices = placement?.devices.length ?? 1;
    const most = typeof allocationBytes === 'number' ? new Array(devices).fill(allocationBytes) : allocationBytes;
    const placing = new Placing(most, batchBytes);
    let converts = false;
    let first = 0;
    for (let file = 0; file < inputs.length; ++file) {
      const { metadata, selection } = inputs[file]!;
      const wanted = countOf(inputs[file]!);
      const placed = placement?.of(metadata);
      for (let from = 0; from < wanted; from += SLICE) {
        const to = Math.min(from + SLICE, wanted);
        fillItems(items, first, file, inputs[file]!, from, to);
        for (let i = from; partOf && i < to; ++i) {
          const part = partOf(metadata, selection ? selection[i]! : i);
          parts![first + i] = part;
          if (part) setPart(items, first + i, part);
        }
        if (conversion.dtype !== undefined)
          converts = convertItems(items, first + from, first + to, metadata, conversion) || converts;
        placing.place(items, first + from, first + to, placed);
        if (turns.due()) await turns.take();
      }
      first += wanted;
    }
    return Plan.#placed({ ...items, ...(parts && { parts }), inputs, converts }, placing, placement);
  }

  static #placed(items: Omit<Items, keyof Allocated>, placing: Placing, placement?: Placement): Plan {
    const { sizes, counts, batches } = placing;
    const allocated: Allocated = {
      allocationBatches: Uint32Array.from(batches),
      allocationSizes: Float64Array.from(sizes),
      ...(placement && { devices: placement.devices, allocationDevices: Uint16Array.from(placing.devices) }),
    };
    return new Plan({ ...items, ...allocated }, true, counts);
  }

  /**
   * Of items that were placed elsewhere. `mappable`: they are whole tensors; `counts`: by allocation how many items it
   * has, where these are in the order of their files. @internal
   */
  static ofItems(items: Items, mappable: boolean, counts?: readonly number[], mappedBytes = 0): Plan {
    return new Plan(items, mappable, counts, mappedBytes);
  }

  /** Whether its items are known to be in the order of their files. @internal */
  get isInOrder(): boolean {
    return this.#counts !== undefined;
  }

  /** Begin and end, by file, of the bytes that items have in it: begin is not below end where there are none. */
  rangesOfFiles(): Promise<Float64Array> {
    this.#ranges ??= this.#counts && !this.parts ? this.#rangesInOrder() : this.#rangesOfAll();
    return this.#ranges;
  }

  /** Of files whose items come one after the other: where the first begins, and the last ends. */
  async #rangesInOrder(): Promise<Float64Array> {
    const turns = new Turns();
    const ranges = new Float64Array(2 * this.inputs.length);
    for (const [file, first] of this.#firstItems.entries()) {
      let end = this.#firstItems[file + 1] ?? this.count;
      while (end > first && this.lengths[end - 1] === 0) --end;
      ranges[2 * file] = end > first ? this.offsets[first]! : Number.POSITIVE_INFINITY;
      ranges[2 * file + 1] = end > first ? this.endOf(end - 1) : 0;
      if (turns.due()) await turns.take();
    }
    return ranges;
  }

  async #rangesOfAll(): Promise<Float64Array> {
    const turns = new Turns();
    const ranges = new Float64Array(2 * this.inputs.length);
    for (let file = 0; file < this.inputs.length; ++file) ranges[2 * file] = Number.POSITIVE_INFINITY;
    for (let item = 0; item < this.count; ++item) {
      if (turns.due()) await turns.take();
      const file = this.files[item]!;
      const offset = this.offsets[item]!;
      if (this.lengths[item] === 0) continue;
      ranges[2 * file] = Math.min(ranges[2 * file]!, offset);
      ranges[2 * file + 1] = Math.max(ranges[2 * file + 1]!, this.endOf(item));
    }
    return ranges;
  }

  /** Ranges of a file, in the order of its bytes, in one allocation of `size` bytes; they need be no tensors. */
  static ofRanges(
    metadata: SafeTensorsMetadata,
    size: number,
    ranges: readonly { readonly fileOffset: number; readonly length: number; readonly destOffset: number }[],
  ): Plan {
    const { ends, dtypes } = metadata.packed;
    const items = packedItems(ranges.length);
    let tensor = 0;
    for (const [item, { fileOffset, length, destOffset }] of ranges.entries()) {
      while (tensor < metadata.tensorCount - 1 && metadata.dataStart + ends[tensor]! <= fileOffset) ++tensor;
      items.tensors[item] = tensor;
      items.dtypes[item] = dtypes[tensor]!;
      items.stored[item] = dtypes[tensor]!;
      items.offsets[item] = fileOffset;
      items.lengths[item] = length;
      items.sizes[item] = length;
      items.destinations[item] = destOffset;
    }
    const allocations = { allocationSizes: Float64Array.of(size), allocationBatches: new Uint32Array(1) };
    return new Plan({ ...items, ...allocations, inputs: [{ metadata, selection: null }], converts: false });
  }

  /** How many items each allocation has. */
  async itemsOfAllocations(): Promise<Uint32Array> {
    if (this.#counts) return Uint32Array.from(this.#counts);
    const counts = new Uint32Array(this.allocationSizes.length);
    const turns = new Turns();
    const { count, allocations } = this;
    for (let item = 0; item < count; ++item) {
      ++counts[allocations[item]!]!;
      if (turns.due()) await turns.take();
    }
    return counts;
  }

  /** Every tensor's name, by item. For a plan of whole tensors. */
  names(): string[] {
    const names = new Array<string>(this.count); // flatMap() takes ten times as long
    let item = 0;
    for (const { metadata, selection } of this.inputs) {
      if (selection) for (const tensor of selection) names[item++] = metadata.nameAt(tensor);
      else for (const name of metadata.keys()) names[item++] = name;
    }
    return names;
  }

  /** The item of a tensor, undefined when it was not wanted. For a plan of whole tensors. */
  itemOf(file: number, name: string): number | undefined {
    const input = this.inputs[file]!;
    const place = placeOf(input.metadata.indexOf(name), input);
    return place < 0 ? undefined : this.#firstItems[file]! + place;
  }

  /** The shape in memory of an item's tensor, or part of one. Not for parts as slice-plan.ts places them. */
  shapeOf(item: number): readonly number[] {
    return this.parts?.[item]?.shape ?? this.metadataOf(item).shapeAt(this.tensors[item]!);
  }

  /** Whether some part has holes between its runs. */
  get hasRuns(): boolean {
    return this.parts?.some((part) => part !== null && part.run > 0) ?? false;
  }

  /** Whether an item is all of its tensor. */
  isWhole(item: number): boolean {
    const { begins, ends } = this.metadataOf(item).packed;
    const tensor = this.tensors[item]!;
    return this.lengths[item] === ends[tensor]! - begins[tensor]! && !this.parts?.[item]?.run;
  }

  /** How many of the first `end` items were compared with digests, when they are ready. */
  verified(end: number): number {
    const { digests, proven } = this;
    let verified = 0;
    if (!digests && !proven) return verified;
    for (let item = 0; item < end; ++item) if (digests?.kinds[item] || proven?.has(this.files[item]!)) ++verified;
    return verified;
  }

  /** One past an item's last byte in its file. */
  endOf(item: number): number {
    const part = this.parts?.[item];
    const length = this.lengths[item]!;
    const span = part && part.run > 0 ? (length / part.run - 1) * part.stride + part.run : length;
    return this.offsets[item]! + span;
  }

  /** The header of an item's file. */
  metadataOf(item: number): SafeTensorsMetadata {
    return this.inputs[this.files[item]!]!.metadata;
  }

  dtypeOf(item: number): DTypeName {
    return DTYPE_NAMES[this.dtypes[item]!]!;
  }

  batchOf(item: number): number {
    return this.allocationBatches[this.allocations[item]!]!;
  }

  /**
   * For errors: the tensor that byte `offset` of a file belongs to, or the next one, as reads in blocks begin before
   * their tensor.
   */
  tensorAt(path: string, offset: number): string | undefined {
    let nearest = -1; // items of a file may come in several runs
    for (let item = 0; item < this.count; ++item) {
      if (offset >= this.endOf(item) || this.metadataOf(item).path !== path) continue;
      if (nearest < 0 || this.offsets[item]! < this.offsets[nearest]!) nearest = item;
    }
    return nearest < 0 ? undefined : this.metadataOf(nearest).nameAt(this.tensors[nearest]!);
  }

  /** The headers of its files. */
  get headers(): SafeTensorsMetadata[] {
    return this.inputs.map(headerOf);
  }

  get paths(): string[] {
    return this.inputs.map(pathOf);
  }

  /** Whether some file has digests of its tensors. */
  get hasSums(): boolean {
    return this.inputs.some(hasSums);
  }

  /** The plan as the addon takes it. INVALID_ARGUMENT for a header from a buffer. */
  toNative(): NativePlan {
    return {
      paths: this.paths,
      identities: identitiesOf(this.inputs.map(identityOf)),
      allocationSizes: this.allocationSizes,
      allocationBatches: this.allocationBatches,
      itemFiles: this.files,
      itemAllocations: this.allocations,
      itemOffsets: this.offsets,
      itemLengths: this.lengths,
      itemDestinations: this.destinations,
      apart: this.apart ?? false,
      ...this.mapping,
      ...(this.hasRuns && {
        itemRuns: Float64Array.from(this.parts!, (part) => part?.run ?? 0),
        itemStrides: Float64Array.from(this.parts!, (part) => part?.stride ?? 0),
      }),
      ...(this.converts && { itemFrom: this.stored, itemTo: this.dtypes }),
      ...(this.digests && { itemDigestKinds: this.digests.kinds, itemDigests: this.digests.digests }),
    };
  }
}

// Of an input. Not within the functions that call them for each: what V8 compiles of a function goes with the last one
// that was made of it.

/** How many tensors of a file are wanted. */
function countOf({ metadata, selection }: PlanInput): number {
  return selection?.length ?? metadata.tensorCount;
}

function headerOf({ metadata }: PlanInput): SafeTensorsMetadata {
  return metadata;
}

function pathOf({ metadata }: PlanInput): string {
  return metadata.path;
}

function hasSums({ metadata }: PlanInput): boolean {
  return metadata.hasSums;
}

function identityOf({ metadata: { identity } }: PlanInput): NativeFileIdentity {
  if (identity) return identity;
  throw new FastSafetensorsError('INVALID_ARGUMENT', 'a header made from a buffer names no file to load from');
}

/** The first item of each. */
function firstsOf(inputs: readonly PlanInput[]): number[] {
  const firsts: number[] = [];
  let first = 0;
  for (const input of inputs) {
    firsts.push(first);
    first += countOf(input);
  }
  return firsts;
}

function sumOf(values: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; ++i) sum += values[i]!; // reduce() takes ten times as long
  return sum;
}

/** The next multiple of TENSOR_ALIGNMENT. */
export function alignUp(value: number): number {
  return Math.ceil(value / TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT;
}
