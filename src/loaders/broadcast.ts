import { createHash } from 'node:crypto';
import { DTYPE_BITS } from '../base/dtype.js';
import { FastSafetensorsError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { Allocation } from '../device/allocation.js';
import type { Device } from '../device/device.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { native, settled } from '../native/addon.js';
import type { NativeAllocation, NativeCommunicator } from '../native/core.js';
import type { PartRange } from '../transfer/parts.js';
import { alignUp, MAX_ALLOCATION, type Plan } from '../transfer/plan.js';
import { type Share, sharesOf } from '../transfer/shares.js';
import type { ProcessGroup } from './process-group.js';
import type { WantedParts } from './tensor-source.js';

/** Digits of a digest. */
const HASH_BYTES = 32;

interface Place {
  readonly allocation: Allocation;
  readonly offset: number;
}

/** Bytes that a rank has at a place, and all ranks get at one. */
interface Piece {
  readonly from?: Place;
  readonly to: Place;
  readonly length: number;
  readonly root: number;
}

/** A rank's end of one communicator. */
export interface Link {
  readonly communicator: NativeCommunicator;
  readonly device: Device;
  readonly pg: ProcessGroup;
  readonly stallTimeoutMs: number;
}

/** The outcome of work in which this rank meets the others; where it rejects they are not told, and it is the last. */
async function meeting<T>({ communicator }: Link, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    native().abandonCommunicator(communicator);
    throw error;
  }
}

/** What `each` makes of the items; the event loop has its turns. */
async function mapped<T, U>(items: Iterable<T>, each: (item: T, index: number) => U): Promise<U[]> {
  const turns = new Turns(16);
  const all: U[] = [];
  for (const item of items) {
    all.push(each(item, all.length));
    if (turns.due()) await turns.take();
  }
  return all;
}

async function broadcast({ communicator, stallTimeoutMs }: Link, pieces: readonly Piece[]): Promise<void> {
  const numbers = new Float64Array(4 * pieces.length);
  const from: (NativeAllocation | null)[] = [];
  const to = await mapped(pieces, (piece, i) => {
    numbers.set([piece.from?.offset ?? 0, piece.to.offset, piece.length, piece.root], 4 * i);
    from.push(piece.from?.allocation.handle ?? null);
    return piece.to.allocation.handle;
  });
  await settled(native().broadcast(communicator, from, to, numbers, stallTimeoutMs));
}

/** What each rank says, whose length all know, by rank. */
async function exchange(link: Link, own: Uint8Array, lengths: readonly number[]): Promise<Uint8Array[]> {
  const begins = [0];
  for (const length of lengths) begins.push(begins.at(-1)! + length);
  const total = begins.at(-1)!;
  if (total === 0) return lengths.map(() => new Uint8Array());
  return Allocation.during(link.device, total, async (allocation) => {
    if (own.length > 0) await allocation.write(begins[link.pg.rank]!, own);
    const pieces = lengths.map((length, root) => ({ to: { allocation, offset: begins[root]! }, length, root }));
    await broadcast(
      link,
      pieces.filter(({ length }) => length > 0),
    );
    const all = new Uint8Array(await settled(native().readAllocation(allocation.handle, 0, total)));
    return lengths.map((length, rank) => all.subarray(begins[rank]!, begins[rank]! + length));
  });
}

/** One number of each rank, by rank. */
async function exchangeNumber(link: Link, own: number): Promise<number[]> {
  const bytes = new Uint8Array(Float64Array.of(own).buffer);
  const said = await exchange(link, bytes, new Array(link.pg.size).fill(bytes.length));
  return said.map((each) => new Float64Array(Uint8Array.from(each).buffer)[0]!);
}

/** What ranks have agreed on. */
interface Agreed {
  readonly items: readonly number[]; // in the order of all ranks
  readonly rowBytes: readonly number[]; // of each of them
  readonly shares: readonly Share[];
  readonly share: WantedParts;
}

/** Tensors that all ranks want whole in the same call, each rank reads a share of, and all get of each other. */
export class Replicated {
  readonly #link: Link;
  readonly #plan: Plan;
  readonly #agreed: Agreed;

  private constructor(link: Link, plan: Plan, agreed: Agreed) {
    this.#link = link;
    this.#plan = plan;
    this.#agreed = agreed;
  }

  /**
   * Meets the other ranks, of which each calls it: finds out which of the items of `plan` that this rank wants whole
   * all others want, too. `uncut`: a tensor is read by one rank, as digests are of whole ones. Rejects with
   * the codes of Communicator::Broadcast.
   */
  static async agree(link: Link, plan: Plan, wanted: WantedParts, uncut: boolean): Promise<Replicated> {
    const agreed = await meeting(link, () => Replicated.#agree(link, plan, wanted, uncut));
    return new Replicated(link, plan, agreed);
  }

  static async #agree(link: Link, plan: Plan, wanted: WantedParts, uncut: boolean): Promise<Agreed> {
    const whole = [...wanted.keys()].filter((item) => wanted.get(item) === null && plan.sizes[item]! > 0);
    const byHash = new Map<string, number>();
    await mapped(
      whole.sort((a, b) => a - b),
      (item) => byHash.set(hashOf(plan, item, uncut), item),
    );
    const own = Buffer.from([...byHash.keys()].join(''), 'latin1');
    const counts = await exchangeNumber(link, own.length);
    const lists: Set<string>[] = [];
    for (const list of await exchange(link, own, counts)) {
      const hashes = new Set<string>();
      await mapped(hashesIn(list), (hash) => hashes.add(hash));
      lists.push(hashes);
    }
    const items: number[] = [];
    await mapped(lists[0]!, (hash) => {
      if (lists.every((list) => list.has(hash))) items.push(byHash.get(hash)!);
    });
    const tensors = await mapped(items, (item) => ({ bytes: plan.sizes[item]!, rows: rowsOf(plan, item, uncut) }));
    const shares = sharesOf(tensors, link.pg.size);
    const share = new Map<number, PartRange | null>();
    for (const { tensor, rank, start, stop } of shares) {
      const isWhole = tensors[tensor]!.rows === stop - start;
      if (rank === link.pg.rank) share.set(items[tensor]!, isWhole ? null : { dim: 0, start, stop });
    }
    return { items, rowBytes: tensors.map(({ bytes, rows }) => bytes / rows), shares, share };
  }

  /** What this rank reads: parts of them, null for all. */
  get share(): WantedParts {
    return this.#agreed.share;
  }

  /** What of `wanted` this rank reads for itself alone. */
  without(wanted: WantedParts): WantedParts {
    const shared = new Set(this.#agreed.items);
    return new Map([...wanted].filter(([item]) => !shared.has(item)));
  }

  /** Bytes that this rank gets of others. */
  get receivedBytes(): number {
    return this.#agreed.shares
      .filter(({ rank }) => rank !== this.#link.pg.rank)
      .reduce((sum, share) => sum + this.#bytesOf(share), 0);
  }

  /** Tells the others that this rank has not read its share; they reject. */
  async fail(): Promise<void> {
    await this.#tell(1);
  }

  /**
   * Gives `own`, what this rank has read of its share, to the others, and makes tensors of what all have. Disposes
   * `own`. IO_ERROR where another rank has failed; the codes of Communicator::Broadcast and of memory.
   */
  async receive(own: readonly DeviceTensor[]): Promise<DeviceTensor[]> {
    const { items } = this.#agreed;
    const allocations: Allocation[] = [];
    try {
      let ready: { readonly places: readonly Place[]; readonly pieces: readonly Piece[] } | undefined;
      let problem: unknown;
      try {
        const places = await this.#allocate(allocations);
        ready = { places, pieces: await this.#pieces(own, places) };
      } catch (error) {
        problem = error; // the others wait to hear of it
      }
      const failed = (await this.#tell(ready ? 0 : 1)).indexOf(1);
      if (!ready) throw problem;
      if (failed >= 0) {
        const message = `rank ${failed} has not read its share of the tensors that every rank has: its error says why`;
        throw new FastSafetensorsError('IO_ERROR', message);
      }
      const { places, pieces } = ready;
      if (pieces.length > 0) await meeting(this.#link, () => broadcast(this.#link, pieces));
      return await mapped(items, (item, i) => {
        const { allocation, offset } = places[i]!;
        const plan = this.#plan;
        const [dtype, shape, size] = [plan.dtypeOf(item), plan.shapeOf(item), plan.sizes[item]!];
        return new DeviceTensor(nameOf(plan, item), dtype, shape, size, this.#link.device, allocation, offset);
      });
    } finally {
      for (const tensor of own) tensor.dispose();
      for (const allocation of allocations) allocation.release();
    }
  }

  /** Whether each rank has failed, 1, or has read its share, 0. */
  #tell(own: 0 | 1): Promise<number[]> {
    return meeting(this.#link, () => exchangeNumber(this.#link, own));
  }

  /** By name: rank 0's order is not that in which this rank has read. */
  #pieces(own: readonly DeviceTensor[], places: readonly Place[]): Promise<Piece[]> {
    const { items, shares, rowBytes } = this.#agreed;
    const mine = new Map(own.map((tensor) => [tensor.name, tensor]));
    return mapped(shares, (share): Piece => {
      const { allocation, offset } = places[share.tensor]!;
      const to = { allocation, offset: offset + share.start * rowBytes[share.tensor]! };
      const piece = { to, length: this.#bytesOf(share), root: share.rank };
      if (share.rank !== this.#link.pg.rank) return piece;
      const part = mine.get(nameOf(this.#plan, items[share.tensor]!))!.placement;
      return { ...piece, from: { allocation: part.allocation!, offset: part.offset } };
    });
  }

  /** Where each tensor will lie; as Plan.ofTensors places them. */
  async #allocate(allocations: Allocation[]): Promise<Place[]> {
    const sizes: number[] = [];
    const places = await mapped(this.#agreed.items, (item) => {
      const size = this.#plan.sizes[item]!;
      let offset = sizes.length > 0 ? alignUp(sizes.at(-1)!) : 0;
      if (sizes.length === 0 || offset + size > MAX_ALLOCATION) {
        sizes.push(0);
        offset = 0;
      }
      sizes[sizes.length - 1] = offset + size;
      return { index: sizes.length - 1, offset };
    });
    for (const size of sizes) allocations.push(await Allocation.allocate(this.#link.device, size));
    return places.map(({ index, offset }) => ({ allocation: allocations[index]!, offset }));
  }

  #bytesOf({ tensor, start, stop }: Share): number {
    return (stop - start) * this.#agreed.rowBytes[tensor]!;
  }
}

function nameOf(plan: Plan, item: number): string {
  return plan.metadataOf(item).nameAt(plan.tensors[item]!);
}

function* hashesIn(list: Uint8Array): Generator<string> {
  const text = Buffer.from(list).toString('latin1');
  for (let at = 0; at < text.length; at += HASH_BYTES) yield text.slice(at, at + HASH_BYTES);
}

/** Into how many rows of whole bytes, as they are in the file, a tensor can be cut. */
function rowsOf(plan: Plan, item: number, uncut: boolean): number {
  const metadata = plan.metadataOf(item);
  const shape = plan.shapeOf(item);
  const rows = shape[0] ?? 1;
  const elements = shape.reduce((product, size) => product * size, 1);
  const bits = (elements / rows) * DTYPE_BITS[metadata.frameAt(plan.tensors[item]!).dtype];
  return uncut || metadata.hasSums || bits % 8 !== 0 ? 1 : rows;
}

/** Of what ranks have to agree on before one may read for another. */
function hashOf(plan: Plan, item: number, uncut: boolean): string {
  const what = [
    nameOf(plan, item),
    plan.dtypeOf(item),
    plan.shapeOf(item),
    plan.sizes[item],
    rowsOf(plan, item, uncut),
  ];
  return createHash('sha256').update(JSON.stringify(what)).digest('hex').slice(0, HASH_BYTES);
}
