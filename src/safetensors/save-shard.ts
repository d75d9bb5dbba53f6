/** One file while it is written: data where it belongs as it comes, the header last. */
import { type FileHandle, open } from 'node:fs/promises';
import { sync, takeOver, writeWhole } from '../base/atomic-write.js';
import { FastSafetensorsError } from '../base/errors.js';
import type { FileOwner } from '../base/file-owner.js';
import { readAt } from '../base/regular-file.js';
import { native, settled } from '../native/addon.js';
import type { NativeAllocation } from '../native/core.js';
import { roomForSums, sumsForHeader } from './make-sums.js';
import { encodeHeader, type HeaderEntry } from './save-header.js';
import { StoredCopies, StoredTensor } from './save-stored.js';
import { byLayout, type Item, piecesOf, type SavePlace } from './save-tensors.js';

/** Bytes before the data of a file whose tensors are not known yet, for length and header. */
const ROOM_BYTES = 256 * 1024;
/** The data of a file that has no more is moved to the end of its header: so much room would be most of the file. */
const SMALL_BYTES = 64 * 1024 * 1024;
/** Tensors whose bytes are no multiple of this would leave those after them misaligned. */
export const ALIGNMENT = 8;
/** Bytes of such tensors that are kept in memory, to be written last. */
const MAX_HELD_BYTES = 16 * 1024 * 1024;
const PAGE_BYTES = 4096;
const MOVE_BYTES = 4 * 1024 * 1024;

/** What all files of a set have in common. */
export interface ShardStyle {
  readonly place: SavePlace;
  readonly metadata: [string, string][] | undefined;
  /** A file that the set replaces: its mode and, where that is allowed, its owner and group are kept. */
  readonly replaced: FileOwner | undefined;
  readonly fsync: boolean;
  /** The header gets digests of the tensors. */
  readonly checksum?: boolean;
}

/**
 * A file of a set. One after the other: create(), add() or placeStored() and copy() for each tensor, and when those
 * have settled, finish().
 */
export class Shard {
  readonly path: string;
  /** Of the tensors so far. */
  dataBytes = 0;
  /** Their names and places, in the order of data when the shard is finished. */
  readonly entries: HeaderEntry[] = [];
  readonly #style: ShardStyle;
  readonly #file: FileHandle;
  readonly #dataStart: number;
  readonly #planned: boolean;
  #end = 0; // of the data that was placed
  #held: ((Item & { source: Uint8Array }) | StoredTensor)[] = [];
  #heldBytes = 0;

  private constructor(path: string, style: ShardStyle, file: FileHandle, dataStart: number, planned: boolean) {
    this.path = path;
    this.#style = style;
    this.#file = file;
    this.#dataStart = dataStart;
    this.#planned = planned;
  }

  /** `planned`: all that add() will be given, in that order, where that is known. Rejects as the system. */
  static async create(path: string, style: ShardStyle, planned?: readonly HeaderEntry[]): Promise<Shard> {
    const room = planned && style.checksum ? [roomForSums(planned.map(({ name }) => name))] : [];
    const metadata = room.length > 0 ? [...(style.metadata ?? []), ...room] : style.metadata;
    const dataStart = planned ? startOf(encodeHeader(planned, metadata, style.place).byteLength, planned) : ROOM_BYTES;
    // Nobody may read it who may not read the file that it replaces.
    const file = await open(path, 'wx+', style.replaced ? 0o600 : 0o666);
    return new Shard(path, style, file, dataStart, planned !== undefined);
  }

  /** Gives a tensor its place, at once, and writes it there. */
  async add(item: Item): Promise<void> {
    const { byteLength } = item;
    this.dataBytes += byteLength;
    if (!this.#planned && byteLength % ALIGNMENT !== 0 && this.#heldBytes + byteLength <= MAX_HELD_BYTES) {
      this.#heldBytes += byteLength;
      const bytes = Buffer.allocUnsafeSlow(byteLength);
      this.#held.push({ ...item, source: bytes });
      let at = 0;
      for await (const piece of piecesOf(item)) {
        bytes.set(piece, at);
        at += piece.byteLength;
      }
      return;
    }
    await this.#write(item, this.#place(item));
  }

  /** Where in the file a tensor belongs, to be copied by copy(); undefined for one that finish() copies. */
  placeStored(tensor: StoredTensor): number | undefined {
    this.dataBytes += tensor.byteLength;
    if (this.#planned || tensor.byteLength % ALIGNMENT === 0) return this.#place(tensor);
    this.#held.push(tensor);
    return undefined;
  }

  copy(copies: StoredCopies): Promise<void> {
    return copies.copy(this.#file, this.path, this.#style.fsync);
  }

  #place({ name, dtype, shape, byteLength }: HeaderEntry): number {
    const position = this.#dataStart + this.#end;
    this.#end += byteLength;
    this.entries.push({ name, dtype, shape, byteLength });
    return position;
  }

  async #writeHeld(item: Item | StoredTensor): Promise<void> {
    const position = this.#place(item);
    if (!(item instanceof StoredTensor)) return this.#write(item, position);
    for (let done = 0; done < item.byteLength; ) {
      const copies = new StoredCopies(item);
      done += copies.take(item, done, position + done);
      await this.copy(copies);
    }
  }

  async #write(item: Item, position: number): Promise<void> {
    const memory = memoryOf(item);
    if (memory) {
      const { allocation, offset } = memory;
      const { fd } = this.#file;
      const { fsync } = this.#style;
      // Not as `data`, a typed array: until that is collected, the memory cannot be freed.
      await settled(
        native().saveAllocation(allocation.handle, offset, item.byteLength, fd, position, this.path, fsync),
      );
      return;
    }
    let at = position;
    for await (const piece of piecesOf(item)) {
      await writeWhole(this.#file, piece, at);
      at += piece.byteLength;
    }
  }

  /** Writes what was held back, and the header; then the file has all its bytes, synced where that is wanted. */
  async finish(): Promise<void> {
    const { place, replaced, fsync, checksum } = this.#style;
    for (const item of this.#held.sort(byLayout)) await this.#writeHeld(item);
    this.#held = [];
    const sums = checksum ? [await this.#sums()] : [];
    const metadata = sums.length > 0 ? [...(this.#style.metadata ?? []), ...sums] : this.#style.metadata;
    const exact = encodeHeader(this.entries, metadata, place);
    const fits = exact.byteLength <= this.#dataStart && this.#end > SMALL_BYTES;
    if (!fits) await this.#moveData(exact.byteLength);
    const header = fits ? encodeHeader(this.entries, metadata, place, this.#dataStart) : exact;
    await writeWhole(this.#file, header, 0);
    if (replaced) await takeOver(this.#file, replaced);
    if (fsync) await sync(this.#file);
  }

  /** Digests of the data as it was written. */
  #sums(): Promise<[string, string]> {
    let offset = this.#dataStart;
    const ranges = this.entries.map(({ name, byteLength: length }) => {
      offset += length;
      return { name, offset: offset - length, length };
    });
    return sumsForHeader(this.path, ranges);
  }

  /** Moves the data within the file. */
  async #moveData(start: number): Promise<void> {
    const distance = start - this.#dataStart;
    if (distance === 0) return;
    const piece = Buffer.allocUnsafeSlow(Math.min(MOVE_BYTES, this.#end));
    for (let done = 0; done < this.#end; ) {
      const bytes = piece.subarray(0, Math.min(piece.byteLength, this.#end - done));
      // What is moved towards the end begins there, so that nothing is overwritten that was not read.
      const at = this.#dataStart + (distance > 0 ? this.#end - done - bytes.byteLength : done);
      const read = await readAt(this.#file, bytes, at);
      if (read < bytes.byteLength) throw cutShort(this.path, at + read);
      await writeWhole(this.#file, bytes, at + distance);
      done += bytes.byteLength;
    }
    if (distance < 0) await this.#file.truncate(start + this.#end);
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

/**
 * Where data begins behind a header of so many bytes: at the place in a page of the first tensor in its file, so that
 * the kernel copies whole pages, or shares them where the file system can.
 */
function startOf(headerBytes: number, planned: readonly HeaderEntry[]): number {
  const [first] = planned;
  if (!(first instanceof StoredTensor) || first.offset % ALIGNMENT !== 0) return headerBytes;
  const bytes = planned.reduce((sum, { byteLength }) => sum + byteLength, 0);
  if (bytes <= SMALL_BYTES) return headerBytes;
  return headerBytes + ((((first.offset - headerBytes) % PAGE_BYTES) + PAGE_BYTES) % PAGE_BYTES);
}

function cutShort(path: string, offset: number): FastSafetensorsError {
  const message = `${path}: expected what was written, found the end at byte ${offset}; save it again`;
  return new FastSafetensorsError('IO_ERROR', message, { path, offset });
}

/** The memory that a tensor of a loader lies in; undefined for others, and for tensors of no bytes. */
function memoryOf({ source }: Item): { allocation: { handle: NativeAllocation }; offset: number } | undefined {
  if (!('placement' in source)) return undefined;
  const { allocation, offset } = source.placement as {
    allocation: { handle: NativeAllocation } | null;
    offset: number;
  };
  return allocation ? { allocation, offset } : undefined;
}
