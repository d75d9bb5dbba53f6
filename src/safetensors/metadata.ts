import { isUint8Array } from 'node:util/types';
import * as check from '../base/checks.js';
import { DTYPE_NAMES } from '../base/dtype.js';
import { keepExample } from '../base/examples.js';
import { PackedTextMap, PackedTexts, TextSearch } from '../base/packed-texts.js';
import { Turns } from '../base/timers.js';
import type { FileCalls } from '../base/waiting.js';
import { fileCall, native, settled, statusError } from '../native/addon.js';
import type { NativeHeaderFdCache } from '../native/core.js';
import type { NativeFileIdentity, NativeHeader, PackedHeader } from '../native/packed.js';
import { TensorFrame, type TensorFrameJson } from './tensor-frame.js';

export { TensorFrame, type TensorFrameJson } from './tensor-frame.js';

/** Options of SafeTensorsMetadata.fromFile and fromBuffer. */
export interface SafeTensorsMetadataOptions {
  /** Accept bytes behind the last tensor, counted in `trailingBytes`; default: false, they are refused. */
  readonly allowTrailingBytes?: boolean;
}

/** What a header says, as JSON.stringify() writes it and `inspect --json` prints it. */
export interface SafeTensorsMetadataJson {
  path: string;
  headerLength: number;
  dataStart: number;
  sizeBytes: number;
  tensorCount: number;
  metadata: Record<string, string>;
  tensors: TensorFrameJson[];
}

/** How a header is read in this package. */
export interface HeaderOptions extends SafeTensorsMetadataOptions {
  /** The header will be asked for tensors by name; true. */
  readonly byName?: boolean;
  /** Keeps the file open for its data. */
  readonly fdCache?: NativeHeaderFdCache;
  /** Limits the looks at files. */
  readonly calls?: FileCalls;
}

/** Names put into the lookup table between two looks at the clock: far less than a millisecond's worth. */
const BLOCK = 1024;
/** More texts of `__metadata__` become no Map. */
const MOST_IN_MAP = 65_536;

/** Where numbers are in a packed header. */
const FIRST_ARRAY = 8;
const IDENTITY = FIRST_ARRAY + 2 * 11;

/**
 * The checked header of a .safetensors file; no tensor's data is read. Tensors are in the order of their offsets.
 * Immutable. Names, shapes and offsets stay packed as the core made them; a TensorFrame is made when it is asked for.
 */
export class SafeTensorsMetadata {
  /** The path as it was given, `~` and file: URLs resolved; '' for a buffer. */
  readonly path: string;
  /** Bytes of the header's JSON, padding included. */
  readonly headerLength: number;
  /** Bytes of the whole file. */
  readonly sizeBytes: number;
  readonly tensorCount: number;
  /** Bytes behind the last tensor; 0 unless allowTrailingBytes accepted some. */
  readonly trailingBytes: number;
  /** The byte of the file where the data begins; offsets of tensors count from there. */
  readonly dataStart: number;
  /** The file when its header was read, to notice that it changed; null for a buffer. @internal */
  readonly identity: NativeFileIdentity | null;

  readonly #header: NativeHeader;
  readonly #names: PackedTexts | undefined; // of names in bytes
  readonly #search: TextSearch | undefined; // in place of #indices
  readonly #packedMetadata: PackedTextMap | undefined; // in place of #metadata
  // Both tables hold the first `size` entries and grow when more are asked for. Of a thousand files most need neither.
  #metadata: Map<string, string> | undefined;
  #indices: Map<string, number> | undefined;

  /** @internal Use fromFile, fromBuffer or, in this package, fromNative. */
  constructor(header: NativeHeader, path: string, identity = header.identity) {
    this.path = path;
    this.headerLength = header.headerLength;
    this.sizeBytes = header.sizeBytes;
    this.tensorCount = header.tensorCount;
    this.trailingBytes = header.trailingBytes;
    this.dataStart = header.dataStart;
    this.identity = identity;
    this.#header = header;
    const { names, nameSlots, metadataSlots, textSeed = 0 } = header;
    if (typeof names !== 'string' || nameSlots) this.#names = new PackedTexts(names, header.nameEnds);
    if (this.#names && nameSlots) this.#search = new TextSearch(this.#names, nameSlots, textSeed);
    if (metadataSlots && header.metadataEnds.length > 2 * MOST_IN_MAP) {
      const texts = new PackedTexts(header.metadataTexts, header.metadataEnds);
      this.#packedMetadata = new PackedTextMap(texts, metadataSlots, textSeed);
    }
  }

  /**
   * Reads and checks a file's header, off the event loop. Rejects with NOT_SAFETENSORS, HEADER_TOO_SMALL,
   * HEADER_TOO_LARGE, INVALID_HEADER_LENGTH, INVALID_HEADER, DUPLICATE_KEY, UNKNOWN_DTYPE, TENSOR_INVALID_INFO,
   * INVALID_OFFSET, METADATA_INCOMPLETE_BUFFER (the file's size does not fit its tensors), IO_ERROR, FILE_CHANGED or
   * INVALID_ARGUMENT.
   */
  static async fromFile(file: string | URL, options: SafeTensorsMetadataOptions = {}): Promise<SafeTensorsMetadata> {
    check.takesAtMost(2, arguments, 'fromFile');
    const path = check.pathOf(file, 'fromFile');
    return SafeTensorsMetadata.read(path, { allowTrailingBytes: allowsTrailing(options) });
  }

  /** The same for a path. `fdCache`: where the file stays open for its data; for `byName` see fromNative. @internal */
  static async read(
    path: string,
    { allowTrailingBytes = false, byName = true, fdCache, calls }: HeaderOptions,
  ): Promise<SafeTensorsMetadata> {
    const progress = native().newProgress();
    const begin = () => native().readHeader(path, allowTrailingBytes, fdCache, progress);
    const moved = () => native().progressOf(progress);
    const header = await fileCall('the header of', path, begin, calls, moved);
    return SafeTensorsMetadata.fromNative(unpackHeader(header), path, { byName });
  }

  /**
   * read() for several files, one after the other up to the first that fails; `descriptors`: so many will be open soon.
   * @internal
   */
  static async readMany(
    paths: readonly string[],
    { allowTrailingBytes = false, byName = true, fdCache, calls }: HeaderOptions,
    descriptors: number,
  ): Promise<SafeTensorsMetadata[]> {
    const progress = native().newProgress();
    const files = native().newProgress();
    const begin = () => native().readHeaders(paths, allowTrailingBytes, fdCache, progress, files, descriptors);
    const path = () => paths[Math.min(native().progressOf(files), paths.length - 1)]!;
    const moved = () => native().progressOf(progress);
    const { headers, error } = await fileCall('the header of', path, begin, calls, moved);
    if (error) throw statusError(error);
    const read: SafeTensorsMetadata[] = [];
    for (let i = 0; i < headers.length; ++i) {
      const metadata = new SafeTensorsMetadata(unpackHeader(headers[i]!), paths[i]!);
      if (metadata.#isLong) await metadata.#fill(byName);
      read.push(metadata);
    }
    return read;
  }

  /**
   * Checks a whole file in memory, off the event loop. The bytes stay the caller's, are not kept, and must not change
   * until the promise settles. Rejects as fromFile does for a file of these bytes.
   */
  static async fromBuffer(buffer: Uint8Array, options: SafeTensorsMetadataOptions = {}): Promise<SafeTensorsMetadata> {
    check.takesAtMost(2, arguments, 'fromBuffer');
    if (!isUint8Array(buffer)) check.fail('fromBuffer', 'a Uint8Array', buffer);
    const header = await settled(native().parseHeader(buffer, allowsTrailing(options)));
    return SafeTensorsMetadata.fromNative(unpackHeader(header), '');
  }

  /**
   * Builds the tables that the core has not made in turns of the event loop: the first get() of 100,000 names would
   * hold it for 30 ms. Without `byName` that of names is left out. @internal
   */
  static async fromNative(
    header: NativeHeader,
    path: string,
    { byName = true }: { byName?: boolean } = {},
  ): Promise<SafeTensorsMetadata> {
    const metadata = new SafeTensorsMetadata(header, path);
    await metadata.#fill(byName);
    return metadata;
  }

  /** There is something to fill(). */
  get #isLong(): boolean {
    const { metadataTexts } = this.#header;
    // Keys differ: so many have as many characters together.
    return this.tensorCount > BLOCK || (metadataTexts.length >= BLOCK && this.#header.metadataEnds.length > 2 * BLOCK);
  }

  async #fill(byName: boolean): Promise<void> {
    const turns = new Turns(1);
    for (let end = BLOCK; byName && !this.#search && end < this.tensorCount; end += BLOCK) {
      this.#indexUpTo(end);
      if (turns.due()) await turns.take();
    }
    for (let end = BLOCK; !this.#packedMetadata && end < this.#header.metadataEnds.length / 2; end += BLOCK) {
      this.#metadataUpTo(end);
      if (turns.due()) await turns.take();
    }
  }

  /** The same header for a name that is no file. @internal */
  named(name: string): SafeTensorsMetadata {
    return new SafeTensorsMetadata(this.#header, name, null);
  }

  /** The texts of the header's `__metadata__`, in the file's order; empty when there are none. */
  get metadata(): ReadonlyMap<string, string> {
    if (this.#packedMetadata) return this.#packedMetadata;
    return this.#metadataUpTo(this.#header.metadataEnds.length / 2);
  }

  /** The names of all tensors, in the order of offsets. */
  keys(): string[] {
    check.takesAtMost(0, arguments, 'keys');
    if (this.#search) {
      const names = new Array<string>(this.tensorCount); // Array.from({ length }) takes several times as long
      for (let i = 0; i < names.length; ++i) names[i] = this.nameAt(i);
      return names;
    }
    return [...this.#indexUpTo(this.tensorCount).keys()]; // so that names are cut out of the header's text only once
  }

  /** Whether there is a tensor of this name. */
  has(name: string): boolean {
    check.takesAtMost(1, arguments, 'has');
    return this.indexOf(name) >= 0;
  }

  /** A tensor by its name; undefined for none. */
  get(name: string): TensorFrame | undefined {
    check.takesAtMost(1, arguments, 'get');
    const index = this.indexOf(name);
    return index < 0 ? undefined : this.frameAt(index);
  }

  /** Every tensor in the order of offsets, its frame made when it is reached. */
  *[Symbol.iterator](): Generator<TensorFrame, void, void> {
    for (let i = 0; i < this.tensorCount; ++i) yield this.frameAt(i);
  }

  /** All of it as plain values, tensors in the order of offsets. */
  toJSON(): SafeTensorsMetadataJson {
    const { path, headerLength, dataStart, sizeBytes, tensorCount } = this;
    const tensors = Array.from(this, (frame) => frame.toJSON());
    const metadata = Object.fromEntries(this.metadata);
    return { path, headerLength, dataStart, sizeBytes, tensorCount, metadata, tensors };
  }

  /** A tensor's place in the order of offsets; -1 for none. @internal */
  indexOf(name: string): number {
    if (this.#search) return this.#search.find(name);
    return this.#indexUpTo(this.tensorCount).get(name) ?? -1;
  }

  #indexUpTo(end: number): ReadonlyMap<string, number> {
    this.#indices ??= new Map();
    for (let i = this.#indices.size; i < end; ++i) this.#indices.set(this.nameAt(i), i);
    return this.#indices;
  }

  #metadataUpTo(end: number): ReadonlyMap<string, string> {
    this.#metadata ??= new Map();
    const texts = new PackedTexts(this.#header.metadataTexts, this.#header.metadataEnds);
    for (let i = this.#metadata.size; i < end; ++i) this.#metadata.set(texts.at(2 * i), texts.at(2 * i + 1));
    return this.#metadata;
  }

  /** Whether there are digests of its tensors. @internal */
  get hasSums(): boolean {
    return this.#header.hasSums ?? false;
  }

  /** The header as the core packed it. @internal */
  get packed(): NativeHeader {
    return this.#header;
  }

  /** @internal */
  nameAt(index: number): string {
    if (this.#names) return this.#names.at(index);
    const { names, nameEnds } = this.#header;
    return (names as string).slice(index === 0 ? 0 : nameEnds[index - 1], nameEnds[index]);
  }

  /** @internal */
  shapeAt(index: number): number[] {
    const { rankEnds, dims } = this.#header;
    const begin = index === 0 ? 0 : rankEnds[index - 1]!;
    // Not by push(): an array that grows gets room for 17 numbers, which is more than all else that a tensor keeps.
    const shape = new Array<number>(rankEnds[index]! - begin);
    for (let i = 0; i < shape.length; ++i) shape[i] = dims[begin + i]!;
    return shape;
  }

  /** @internal */
  frameAt(index: number): TensorFrame {
    const { dtypes, begins, ends } = this.#header;
    const dtype = DTYPE_NAMES[dtypes[index]!]!;
    return new TensorFrame(this.nameAt(index), dtype, this.shapeAt(index), [begins[index]!, ends[index]!]);
  }
}

function allowsTrailing(options: SafeTensorsMetadataOptions): boolean {
  return check.checkOptions(options, { allowTrailingBytes: check.boolean }).allowTrailingBytes ?? false;
}

/** A header as the core packed it. An array is made when it is first used: most headers of many need only some. */
class UnpackedHeader implements NativeHeader {
  readonly headerLength: number;
  readonly sizeBytes: number;
  readonly dataStart: number;
  readonly trailingBytes: number;
  readonly tensorCount: number;
  readonly hasSums: boolean;
  readonly textSeed: number;
  readonly identity: NativeFileIdentity | null;
  readonly #numbers: Float64Array; // over the block
  readonly #texts: string | null;
  readonly #metadataTexts: string | null;
  #begins: Float64Array | undefined;
  #ends: Float64Array | undefined;
  #dims: Float64Array | undefined;
  #rankEnds: Uint32Array | undefined;
  #nameEnds: Uint32Array | undefined;
  #metadataEnds: Uint32Array | undefined;
  #dtypes: Uint8Array | undefined;

  constructor([block, names, metadataTexts]: PackedHeader) {
    const numbers = new Float64Array(block, 0, IDENTITY);
    this.headerLength = numbers[0]!;
    this.sizeBytes = numbers[1]!;
    this.dataStart = numbers[2]!;
    this.trailingBytes = numbers[3]!;
    this.tensorCount = numbers[4]!;
    this.hasSums = numbers[5] === 1;
    this.textSeed = numbers[6]!;
    this.identity = numbers[7] === 1 ? identityOf(new BigUint64Array(block, IDENTITY * 8, 4)) : null;
    this.#numbers = numbers;
    this.#texts = names;
    this.#metadataTexts = metadataTexts;
  }

  get begins(): Float64Array {
    this.#begins ??= this.#doubles(0);
    return this.#begins;
  }

  get ends(): Float64Array {
    this.#ends ??= this.#doubles(1);
    return this.#ends;
  }

  get dims(): Float64Array {
    this.#dims ??= this.#doubles(2);
    return this.#dims;
  }

  get rankEnds(): Uint32Array {
    this.#rankEnds ??= this.#integers(3);
    return this.#rankEnds;
  }

  get nameEnds(): Uint32Array {
    this.#nameEnds ??= this.#integers(4);
    return this.#nameEnds;
  }

  get metadataEnds(): Uint32Array {
    this.#metadataEnds ??= this.#integers(5);
    return this.#metadataEnds;
  }

  get nameSlots(): Uint32Array | undefined {
    return this.#length(6) > 0 ? this.#integers(6) : undefined;
  }

  get metadataSlots(): Uint32Array | undefined {
    return this.#length(7) > 0 ? this.#integers(7) : undefined;
  }

  get dtypes(): Uint8Array {
    this.#dtypes ??= this.#bytes(8);
    return this.#dtypes;
  }

  get names(): string | Uint8Array {
    return this.#texts ?? this.#bytes(9);
  }

  get metadataTexts(): string | Uint8Array {
    return this.#metadataTexts ?? this.#bytes(10);
  }

  #begin(array: number): number {
    return this.#numbers[FIRST_ARRAY + 2 * array]!;
  }

  #length(array: number): number {
    return this.#numbers[FIRST_ARRAY + 2 * array + 1]!;
  }

  #doubles(array: number): Float64Array {
    return new Float64Array(this.#numbers.buffer, this.#begin(array), this.#length(array));
  }

  #integers(array: number): Uint32Array {
    return new Uint32Array(this.#numbers.buffer, this.#begin(array), this.#length(array));
  }

  #bytes(array: number): Uint8Array {
    return new Uint8Array(this.#numbers.buffer, this.#begin(array), this.#length(array));
  }
}

/** What the addon would take ten times as long to make. @internal */
export function unpackHeader(packed: PackedHeader): NativeHeader {
  return new UnpackedHeader(packed);
}

function identityOf(numbers: BigUint64Array): NativeFileIdentity {
  return { dev: numbers[0]!, ino: numbers[1]!, size: numbers[2]!, mtimeNs: BigInt.asIntN(64, numbers[3]!) };
}

/** Of several files, as the addon takes them: 4 numbers each. @internal */
export function identitiesOf(files: readonly NativeFileIdentity[]): BigUint64Array {
  const numbers = new BigUint64Array(4 * files.length);
  for (let i = 0; i < files.length; ++i) {
    const { dev, ino, size, mtimeNs } = files[i]!;
    numbers[4 * i] = dev;
    numbers[4 * i + 1] = ino;
    numbers[4 * i + 2] = size;
    numbers[4 * i + 3] = mtimeNs;
  }
  return numbers;
}

keepExample(new SafeTensorsMetadata(unpackHeader([new ArrayBuffer(8 * IDENTITY), '', '']), ''));
