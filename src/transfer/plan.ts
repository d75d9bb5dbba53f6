import type { PackedDigests } from '../base/digest.js';
import { canConvert, DTYPE_BITS, DTYPE_NAMES, type DTypeName, isFloating } from '../base/dtype.js';
import { FastSafetensorsError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { type NativeMappedFile, type NativePlan, NOT_MAPPED } from '../native/core.js';
import { identitiesOf, type SafeTensorsMetadata } from '../safetensors/metadata.js';
import { placeOf } from '../safetensors/shard-set.js';
import type { Conversion, Items, Placement, PlanInput } from './items.js';
import type { Part, PartOf } from './parts.js';

/** Bytes: frameworks adopt memory at this alignment without a copy. */
export const TENSOR_ALIGNMENT = 256;
/**
 * Bytes: allocations are cut at tensor boundaries before they become larger, so that a tensor that is kept pins little
 * other memory. A larger tensor has an allocation of its own.
 */
export const MAX_ALLOCATION = 256 * 1024 * 1024;
/** Bytes: an allocation in a mapped file begins at a multiple, so that its pages are brought in whole. */
const MAPPED_ALIGNMENT = 4096;
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

export interface Plan extends Items {}

/**
 * Which bytes of files go where in memory. Items are whole tensors, or parts of one. Allocations are loaded in batches,
 * in their order.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the constructor assigns all of Items.
export class Plan {
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
    let first = 0;
    this.#firstItems = items.inputs.map((input) => {
      const item = first;
      first += countOf(input);
      return item;
    });
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
    const count = inputs.reduce((sum, input) => sum + countOf(input), 0);
    const items = await packedItemsInTurns(count);
    const turns = new Turns();
    const parts = partOf && new Array<Part | null>(count).fill(null);
    let converts = false;
    const sizes: number[] = [];
    const counts: number[] = [];
    const batches: number[] = [];
    const allocationDevices: number[] = [];
    const devices = Array.from(placement?.devices ?? [null], (_, device) => ({
      most: typeof allocationBytes === 'number' ? allocationBytes : allocationBytes[device]!,
      allocation: -1, // the present one
      used: 0, // of it
      batch: 0,
      batchUsed: 0, // of the batch's earlier allocations
    }));
    let item = 0;
    for (let file = 0; file < inputs.length; ++file) {
      const { metadata, selection } = inputs[file]!;
      const { begins, ends, dtypes } = metadata.packed;
      const wanted = countOf(inputs[file]!);
      const placed = placement?.of(metadata);
      for (let i = 0; i < wanted; ++i, ++item) {
        const tensor = selection ? selection[i]! : i;
        const part = partOf?.(metadata, tensor) ?? null;
        if (parts) parts[item] = part;
        const begin = part?.fileOffset ?? metadata.dataStart + begins[tensor]!;
        const length = part?.length ?? ends[tensor]! - begins[tensor]!;
        const stored = dtypes[tensor]!;
        const target = conversion.dtype === undefined ? stored : targetOf(metadata, tensor, conversion);
        const size = sizeOf(length, stored, target);
        converts ||= target !== stored;
        const device = placed ? placed[tensor]! : 0;
        const on = devices[device]!;
        let start = alignUp(on.used);
        const batchFull = on.batchUsed + start > 0 && on.batchUsed + start + size > batchBytes;
        if (batchFull) {
          ++on.batch;
          on.batchUsed = 0;
        }
        if (on.allocation < 0 || batchFull || (start > 0 && start + size > on.most)) {
          if (!batchFull) on.batchUsed += on.used;
          on.allocation = sizes.push(0) - 1;
          counts.push(0);
          batches.push(on.batch);
          allocationDevices.push(device);
          start = 0;
        }
        items.tensors[item] = tensor;
        items.dtypes[item] = target;
        items.stored[item] = stored;
        items.files[item] = file;
        items.allocations[item] = on.allocation;
        items.offsets[item] = begin;
        items.lengths[item] = length;
        items.sizes[item] = size;
        items.destinations[item] = start;
        on.used = start + size;
        sizes[on.allocation] = on.used;
        ++counts[on.allocation]!;
        if (turns.due()) await turns.take();
      }
    }
    const allocated = {
      allocationBatches: Uint32Array.from(batches),
      allocationSizes: Float64Array.from(sizes),
      ...(placement && { devices: placement.devices, allocationDevices: Uint16Array.from(allocationDevices) }),
    };
    return new Plan({ ...items, ...(parts && { parts }), inputs, converts, ...allocated }, true, counts);
  }

  /** Of items that were placed elsewhere. `mappable`: they are whole tensors. @internal */
  static ofItems(items: Items, mappable: boolean): Plan {
    return new Plan(items, mappable);
  }

  /**
   * The same items in the same batches, those of mapped files (null: not mapped) where they lie in their file. A tensor
   * that is converted, that has holes, or that does not lie at a multiple of its dtype's size, gets memory: in
   * allocations of at most `allocationBytes`, or its own. Of a mappable plan.
   */
  async mapped(mapped: readonly (NativeMappedFile | null)[], allocationBytes = MAX_ALLOCATION): Promise<Plan> {
    // Of arrays and numbers alone: V8 compiles the loop while it runs.
    const { inputs, tensors, dtypes, stored, converts, apart, files: filesOf, offsets, lengths, sizes, parts } = this;
    const { count, allocations: from, allocationBatches } = this;
    const alignments = DTYPE_NAMES.map((name) => Math.max(1, DTYPE_BITS[name] / 8));
    const turns = new Turns();
    const allocations = new Uint32Array(count);
    const destinations = new Float64Array(count);
    const allocationSizes: number[] = [];
    const counts: number[] = [];
    const batches: number[] = [];
    const files: number[] = [];
    const begins: number[] = [];
    let mappedBytes = 0;
    let view = -1; // the present allocation of either kind
    let memory = -1;
    let batch = 0;
    const begin = (file: number, offset: number): number => {
      batches.push(batch);
      files.push(file);
      begins.push(offset);
      counts.push(0);
      return allocationSizes.push(0) - 1;
    };
    for (let item = 0; item < count; ++item) {
      const itsBatch = allocationBatches[from[item]!]!;
      if (itsBatch !== batch) {
        batch = itsBatch;
        view = -1;
        memory = -1;
      }
      const file = filesOf[item]!;
      const offset = offsets[item]!;
      const size = sizes[item]!;
      const dtype = dtypes[item]!;
      const aligned = offset % alignments[dtype]! === 0;
      let allocation: number;
      let destination: number;
      if (mapped[file] && size > 0 && aligned && dtype === stored[item] && !parts?.[item]?.run) {
        const least = view >= 0 && files[view] === file ? begins[view]! : Number.POSITIVE_INFINITY;
        if (offset < least || offset + size - least > MAX_ALLOCATION)
          view = begin(file, Math.floor(offset / MAPPED_ALIGNMENT) * MAPPED_ALIGNMENT);
        allocation = view;
        destination = offset - begins[view]!;
        mappedBytes += lengths[item]!;
      } else {
        const start = memory >= 0 ? alignUp(allocationSizes[memory]!) : 0;
        if (memory < 0 || (start > 0 && start + size > allocationBytes)) memory = begin(NOT_MAPPED, 0);
        allocation = memory;
        destination = allocationSizes[memory] === 0 ? 0 : start;
      }
      allocations[item] = allocation;
      destinations[item] = destination;
      allocationSizes[allocation] = Math.max(allocationSizes[allocation]!, destination + size);
      ++counts[allocation]!;
      if (turns.due()) await turns.take();
    }
    const plan = new Plan(
      {
        ...{ inputs, tensors, dtypes, stored, converts, apart, files: filesOf, offsets, lengths, sizes, parts },
        allocations,
        destinations,
        allocationSizes: Float64Array.from(allocationSizes),
        allocationBatches: Uint32Array.from(batches),
        mapping: {
          mapped,
          allocationMapped: Uint32Array.from(files),
          allocationMappedOffsets: Float64Array.from(begins),
        },
      },
      true,
      this.#counts && counts,
      mappedBytes,
    );
    plan.digests = this.digests;
    plan.proven = this.proven;
    return plan;
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

  /** The plan as the addon takes it. INVALID_ARGUMENT for a header from a buffer. */
  toNative(): NativePlan {
    const identities = this.inputs.map(({ metadata: { identity } }) => {
      if (identity) return identity;
      throw new FastSafetensorsError('INVALID_ARGUMENT', 'a header made from a buffer names no file to load from');
    });
    return {
      paths: this.inputs.map(({ metadata }) => metadata.path),
      identities: identitiesOf(identities),
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

/** The dtype in memory of a tensor, by its index. UNSUPPORTED_DTYPE when it can neither become `dtype` nor stay. */
export function convertedDtype(metadata: SafeTensorsMetadata, tensor: number, conversion: Conversion): DTypeName {
  return DTYPE_NAMES[targetOf(metadata, tensor, conversion)]!;
}

/** The number of the dtype that a tensor has in memory: integers, booleans and complex numbers stay as they are. */
function targetOf(metadata: SafeTensorsMetadata, tensor: number, { dtype, dtypePolicy }: Conversion): number {
  const stored = metadata.packed.dtypes[tensor]!;
  const from = DTYPE_NAMES[stored]!;
  if (dtype === undefined || from === dtype || !isFloating(from)) return stored;
  if (canConvert(from, dtype)) return DTYPE_NAMES.indexOf(dtype);
  if (dtypePolicy === 'convertible') return stored;
  const { path } = metadata;
  const name = metadata.nameAt(tensor);
  const message =
    `${path}: tensor "${name}" is ${from}, which cannot be converted to ${dtype} on the way; ` +
    "leave it out with filter, let it stay with dtypePolicy: 'convertible', or load without dtype";
  throw new FastSafetensorsError('UNSUPPORTED_DTYPE', message, { path, tensor: name });
}

/** The bytes in memory of `length` bytes in the file. */
function sizeOf(length: number, from: number, to: number): number {
  return from === to ? length : (length / DTYPE_BITS[DTYPE_NAMES[from]!]) * DTYPE_BITS[DTYPE_NAMES[to]!];
}

/** How many tensors of a file are wanted. */
function countOf({ metadata, selection }: PlanInput): number {
  return selection?.length ?? metadata.tensorCount;
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
