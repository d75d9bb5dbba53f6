import { DTYPE_BITS, DTYPE_NAMES } from '../base/dtype.js';
import { keepExample } from '../base/examples.js';
import { Turns } from '../base/timers.js';
import { type NativeMappedFile, NOT_MAPPED } from '../native/core.js';
import type { Items } from './items.js';
import { alignUp, MAX_ALLOCATION, Plan, packedItems, SLICE } from './plan.js';

/** Bytes: an allocation in a mapped file begins at a multiple, so that its pages are brought in whole. */
const MAPPED_ALIGNMENT = 4096;
/** Bytes, by dtype, at a multiple of which an array over one begins. */
const ALIGNMENTS = DTYPE_NAMES.map((name) => Math.max(1, DTYPE_BITS[name] / 8));

const none = { ...packedItems(0), inputs: [], converts: false, count: 0, isInOrder: true } as unknown as Plan;

/** Places items of mapped files where they lie in these, and others one after the other in memory, batch by batch. */
class Viewing {
  static {
    keepExample(new Viewing(none, [], 0));
  }

  /** By item. */
  readonly allocations: Uint32Array;
  readonly destinations: Float64Array;
  /** By allocation. */
  readonly sizes: number[] = [];
  readonly counts: number[] = []; // items
  readonly batches: number[] = [];
  readonly files: number[] = []; // NOT_MAPPED for memory
  readonly begins: number[] = [];
  mappedBytes: number; // not 0 from the beginning: see keepExample()
  readonly #mapped: readonly (NativeMappedFile | null)[];
  readonly #allocationBytes: number;
  #view = -1; // the present allocation of either kind
  #memory = -1;
  #batch = 0;

  constructor({ count }: Plan, mapped: readonly (NativeMappedFile | null)[], allocationBytes: number) {
    this.allocations = new Uint32Array(count);
    this.destinations = new Float64Array(count);
    this.mappedBytes = 0;
    this.#mapped = mapped;
    this.#allocationBytes = allocationBytes;
  }

  place(
    { allocations, allocationBatches, files, offsets, lengths, sizes, dtypes, stored, parts }: Items,
    from: number,
    to: number,
  ): void {
    for (let item = from; item < to; ++item) {
      const batch = allocationBatches[allocations[item]!]!;
      if (batch !== this.#batch) {
        this.#batch = batch;
        this.#view = -1;
        this.#memory = -1;
      }
      const file = files[item]!;
      const offset = offsets[item]!;
      const size = sizes[item]!;
      const dtype = dtypes[item]!;
      const aligned = offset % ALIGNMENTS[dtype]! === 0;
      const isView = this.#mapped[file] && size > 0 && aligned && dtype === stored[item] && !parts?.[item]?.run;
      const allocation = isView ? this.#viewOf(file, offset, size) : this.#memoryFor(size);
      const used = this.sizes[allocation]!;
      const destination = isView ? offset - this.begins[allocation]! : alignUp(used);
      if (isView) this.mappedBytes += lengths[item]!;
      this.allocations[item] = allocation;
      this.destinations[item] = destination;
      this.sizes[allocation] = Math.max(used, destination + size);
      ++this.counts[allocation]!;
    }
  }

  #viewOf(file: number, offset: number, size: number): number {
    const view = this.#view;
    const least = view >= 0 && this.files[view] === file ? this.begins[view]! : Number.POSITIVE_INFINITY;
    if (offset < least || offset + size - least > MAX_ALLOCATION)
      this.#view = this.#begin(file, Math.floor(offset / MAPPED_ALIGNMENT) * MAPPED_ALIGNMENT);
    return this.#view;
  }

  #memoryFor(size: number): number {
    const start = this.#memory < 0 ? 0 : alignUp(this.sizes[this.#memory]!);
    if (this.#memory < 0 || (start > 0 && start + size > this.#allocationBytes))
      this.#memory = this.#begin(NOT_MAPPED, 0);
    return this.#memory;
  }

  #begin(file: number, offset: number): number {
    this.batches.push(this.#batch);
    this.files.push(file);
    this.begins.push(offset);
    this.counts.push(0);
    return this.sizes.push(0) - 1;
  }
}

/**
 * The same items in the same batches, those of mapped files (null: not mapped) where they lie in their file. A tensor
 * that is converted, that has holes, or that does not lie at a multiple of its dtype's size, gets memory: in
 * allocations of at most `allocationBytes`, or its own. Of a mappable plan.
 */
export async function mappedPlan(
  plan: Plan,
  mapped: readonly (NativeMappedFile | null)[],
  allocationBytes = MAX_ALLOCATION,
): Promise<Plan> {
  const { count } = plan;
  const viewing = new Viewing(plan, mapped, allocationBytes);
  const turns = new Turns(1);
  for (let item = 0; item < count; item += SLICE) {
    viewing.place(plan, item, Math.min(item + SLICE, count));
    if (turns.due()) await turns.take();
  }
  return placedBy(viewing, plan, mapped);
}

function placedBy(viewing: Viewing, plan: Plan, mapped: readonly (NativeMappedFile | null)[]): Plan {
  const { inputs, tensors, dtypes, stored, converts, apart, files, offsets, lengths, sizes, parts } = plan;
  const { allocations, destinations } = viewing;
  const placed = Plan.ofItems(
    {
      ...{ inputs, tensors, dtypes, stored, converts, apart, files, offsets, lengths, sizes, parts },
      ...{ allocations, destinations },
      allocationSizes: Float64Array.from(viewing.sizes),
      allocationBatches: Uint32Array.from(viewing.batches),
      mapping: {
        mapped,
        allocationMapped: Uint32Array.from(viewing.files),
        allocationMappedOffsets: Float64Array.from(viewing.begins),
      },
    },
    true,
    plan.isInOrder ? viewing.counts : undefined,
    viewing.mappedBytes,
  );
  placed.digests = plan.digests;
  placed.proven = plan.proven;
  return placed;
}

keepExample(placedBy(new Viewing(none, [], 0), none, []));
