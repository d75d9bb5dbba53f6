import { createHash } from 'node:crypto';
import { DTYPE_BITS } from '../base/dtype.js';
import { FastSafetensorsError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { Allocation } from '../device/allocation.js';
import type { Device } from '../device/device.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { native, settled } from '../native/addon.js';
import type { NativeCommunicator } from '../native/core.js';
import { alignUp, MAX_ALLOCATION, type Plan } from '../transfer/plan.js';
import { type Share, sharesOf } from '../transfer/shares.js';
import type { ProcessGroup } from './process-group.js';
import type { WantedParts } from './tensor-source.js';

/** Digits of a digest. */
const HASH_BYTES = 32;

/** Bytes that a rank has at a place, and all ranks get at one. */
interface Piece {
  readonly from?: { readonly allocation: Allocation; readonly offset: number };
  readonly to: { readonly allocation: Allocation; readonly offset: number };
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

async function broadcast({ communicator, stallTimeoutMs }: Link, pieces: readonly Piece[]): Promise<void> {
  const numbers = pieces.flatMap(({ from, to, length, root }) => [from?.offset ?? 0, to.offset, length, root]);
  const from = pieces.map((piece) => piece.from?.allocation.handle ?? null);
  const to = pieces.map((piece) => piece.to.allocation.handle);
  await settled(native().broadcast(communicator, from, to, Float64Array.from(numbers), stallTimeoutMs));
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

/** Tensors that all ranks want whole in the same call, each rank reads a share of, and all get of each other. */
export class Replicated {
  /** What this rank reads: parts of them, null for all. */
  readonly share: WantedParts;
  readonly #link: Link;
  readonly #plan: Plan;
  readonly #items: readonly number[]; // in the order of all ranks
  readonly #shares: readonly Share[];

  private constructor(link: Link, plan: Plan, items: readonly number[], shares: readonly Share[]) {
    this.#link = link;
    this.#plan = plan;
    this.#items = items;
    this.#shares = shares;
    this.share = new Map(
      shares
        .filter(({ rank }) => rank === link.pg.rank)
        .map(({ tensor, start, stop }) => {
          const item = items[tensor]!;
          return [item, rowsOf(plan, item, false) === stop - start ? null : { dim: 0, start, stop }];
        }),
    );
  }

  /**
   * Meets the other ranks, of which each calls it: finds out which of the items of `plan` that this rank wants whole
   * all others want, too. `uncut`: a tensor is read by one rank, as digests are of whole ones. Rejects with
   * the codes of Communicator::Broadcast.
   */
  static async agree(link: Link, plan: Plan, wanted: WantedParts, uncut: boolean): Promise<Replicated> {
    const whole = [...wanted.keys()].filter((item) => wanted.get(item) === null && plan.sizes[item]! > 0);
    const byHash = new Map<string, number>();
    const turns = new Turns(16);
    for (const item of whole.sort((a, b) => a - b)) {
      byHash.set(hashOf(plan, item, uncut), item);
      if (turns.due()) await turns.take();
    }
    const own = Buffer.from([...byHash.keys()].join(''), 'latin1');
    const counts = await exchangeNumber(link, own.length);
    const lists = (await exchange(link, own, counts)).map((list) => {
      const text = Buffer.from(list).toString('latin1');
      return Array.from({ length: text.length / HASH_BYTES }, (_, i) => text.substr(i * HASH_BYTES, HASH_BYTES));
    });
    const others = lists.slice(1).map((list) => new Set(list));
    const common = lists[0]!.filter((hash) => others.every((list) => list.has(hash)));
    const items = common.map((hash) => byHash.get(hash)!);
    const tensors = items.map((item) => ({ bytes: plan.sizes[item]!, rows: rowsOf(plan, item, uncut) }));
    return new Replicated(link, plan, items, sharesOf(tensors, link.pg.size));
  }

  /** What of `wanted` this rank reads for itself alone. */
  without(wanted: WantedParts): WantedParts {
    const shared = new Set(this.#items);
    return new Map([...wanted].filter(([item]) => !shared.has(item)));
  }

  /** Bytes that this rank gets of others. */
  get receivedBytes(): number {
    return this.#shares
      .filter(({ rank }) => rank !== this.#link.pg.rank)
      .reduce((sum, share) => sum + this.#bytesOf(share), 0);
  }

  /** Tells the others that this rank has not read its share; they reject. */
  async fail(): Promise<void> {
    await exchangeNumber(this.#link, 1);
  }

  /**
   * Gives `own`, what this rank has read of its share, in that order, to the others, and makes tensors of what all
   * have. Disposes `own`. IO_ERROR where another rank has failed; the codes of Communicator::Broadcast and of memory.
   */
  async receive(own: readonly DeviceTensor[]): Promise<DeviceTensor[]> {
    const allocations: Allocation[] = [];
    try {
      const failed = (await exchangeNumber(this.#link, 0)).indexOf(1);
      if (failed >= 0) {
        const message = `rank ${failed} has not read its share of the tensors that every rank has: its error says why`;
        throw new FastSafetensorsError('IO_ERROR', message);
      }
      const places = await this.#allocate(allocations);
      const mine = own.values();
      const pieces = this.#shares.map((share): Piece => {
        const { allocation, offset } = places[share.tensor]!;
        const to = { allocation, offset: offset + share.start * this.#rowBytes(share.tensor) };
        const piece = { to, length: this.#bytesOf(share), root: share.rank };
        if (share.rank !== this.#link.pg.rank) return piece;
        const part = (mine.next().value as DeviceTensor).placement;
        return { ...piece, from: { allocation: part.allocation!, offset: part.offset } };
      });
      if (pieces.length > 0) await broadcast(this.#link, pieces);
      return this.#items.map((item, i) => {
        const { allocation, offset } = places[i]!;
        const plan = this.#plan;
        const name = plan.metadataOf(item).nameAt(plan.tensors[item]!);
        const [dtype, shape, size] = [plan.dtypeOf(item), plan.shapeOf(item), plan.sizes[item]!];
        return new DeviceTensor(name, dtype, shape, size, this.#link.device, allocation, offset);
      });
    } finally {
      for (const tensor of own) tensor.dispose();
      for (const allocation of allocations) allocation.release();
    }
  }

  /** Where each tensor will lie; as Plan.ofTensors places them. */
  async #allocate(allocations: Allocation[]): Promise<{ allocation: Allocation; offset: number }[]> {
    const sizes: number[] = [];
    const places = this.#items.map((item) => {
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

  #rowBytes(tensor: number): number {
    const item = this.#items[tensor]!;
    const rows = this.#shares.findLast((share) => share.tensor === tensor)!.stop; // all of them
    return this.#plan.sizes[item]! / rows;
  }

  #bytesOf({ tensor, start, stop }: Share): number {
    return (stop - start) * this.#rowBytes(tensor);
  }
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
  const name = plan.metadataOf(item).nameAt(plan.tensors[item]!);
  const what = [name, plan.dtypeOf(item), plan.shapeOf(item), plan.sizes[item], rowsOf(plan, item, uncut)];
  return createHash('sha256').update(JSON.stringify(what)).digest('hex').slice(0, HASH_BYTES);
}
