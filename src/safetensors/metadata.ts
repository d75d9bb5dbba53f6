import { isUint8Array } from 'node:util/types';
import * as check from '../base/checks.js';
import { DTYPE_NAMES } from '../base/dtype.js';
import { Turns } from '../base/timers.js';
import type { FileCalls } from '../base/waiting.js';
import { fileCall, native, settled } from '../native/addon.js';
import type { NativeHeaderFdCache } from '../native/core.js';
import type { NativeFileIdentity, NativeHeader } from '../native/packed.js';
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
  // Both tables hold the first `size` entries and grow when more are asked for.
  readonly #metadata = new Map<string, string>();
  readonly #indices = new Map<string, number>();

  /** @internal Use fromFile, fromBuffer or, in this package, fromNative. */
  constructor(header: NativeHeader, path: string) {
    this.path = path;
    this.headerLength = header.headerLength;
    this.sizeBytes = header.sizeBytes;
    this.tensorCount = header.tensorCount;
    this.trailingBytes = header.trailingBytes;
    this.dataStart = header.dataStart;
    this.identity = header.identity;
    this.#header = header;
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
    return SafeTensorsMetadata.fromNative(header, path, { byName });
  }

  /**
   * Checks a whole file in memory, off the event loop. The bytes stay the caller's, are not kept, and must not change
   * until the promise settles. Rejects as fromFile does for a file of these bytes.
   */
  static async fromBuffer(buffer: Uint8Array, options: SafeTensorsMetadataOptions = {}): Promise<SafeTensorsMetadata> {
    check.takesAtMost(2, arguments, 'fromBuffer');
    if (!isUint8Array(buffer)) check.fail('fromBuffer', 'a Uint8Array', buffer);
    const header = await settled(native().parseHeader(buffer, allowsTrailing(options)));
    return SafeTensorsMetadata.fromNative(header, '');
  }

  /**
   * Builds the lookup table in turns of the event loop: the first get() of 100,000 names would hold it for 30 ms.
   * Without `byName` it is left out, since the names of a large table survive several collections. @internal
   */
  static async fromNative(
    header: NativeHeader,
    path: string,
    { byName = true }: { byName?: boolean } = {},
  ): Promise<SafeTensorsMetadata> {
    const metadata = new SafeTensorsMetadata(header, path);
    const turns = new Turns(1);
    for (let end = BLOCK; byName && end < header.tensorCount; end += BLOCK) {
      metadata.#indexUpTo(end);
      if (turns.due()) await turns.take();
    }
    for (let end = BLOCK; end < header.metadataEnds.length / 2; end += BLOCK) {
      metadata.#metadataUpTo(end);
      if (turns.due()) await turns.take();
    }
    return metadata;
  }

  /** The same header for a name that is no file. @internal */
  named(name: string): SafeTensorsMetadata {
    return new SafeTensorsMetadata({ ...this.#header, identity: null }, name);
  }

  /** The texts of the header's `__metadata__`, in the file's order; empty when there are none. */
  get metadata(): ReadonlyMap<string, string> {
    this.#metadataUpTo(this.#header.metadataEnds.length / 2);
    return this.#metadata;
  }

  /** The names of all tensors, in the order of offsets. */
  keys(): string[] {
    check.takesAtMost(0, arguments, 'keys');
    this.#indexUpTo(this.tensorCount);
    return [...this.#indices.keys()]; // so that names are cut out of the header's text only once
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
    this.#indexUpTo(this.tensorCount);
    return this.#indices.get(name) ?? -1;
  }

  #indexUpTo(end: number): void {
    for (let i = this.#indices.size; i < end; ++i) this.#indices.set(this.nameAt(i), i);
  }

  #metadataUpTo(end: number): void {
    const { metadataTexts, metadataEnds } = this.#header;
    for (let i = this.#metadata.size; i < end; ++i) {
      this.#metadata.set(textAt(metadataTexts, metadataEnds, 2 * i), textAt(metadataTexts, metadataEnds, 2 * i + 1));
    }
  }

  /** The header as the core packed it. @internal */
  get packed(): NativeHeader {
    return this.#header;
  }

  /** @internal */
  nameAt(index: number): string {
    const { names, nameEnds } = this.#header;
    return textAt(names, nameEnds, index);
  }

  /** @internal */
  shapeAt(index: number): number[] {
    const { rankEnds, dims } = this.#header;
    const shape: number[] = [];
    for (let i = index === 0 ? 0 : rankEnds[index - 1]!; i < rankEnds[index]!; ++i) shape.push(dims[i]!);
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

/** Text number `index` of several that were packed into one string. */
export function textAt(texts: string, ends: Uint32Array, index: number): string {
  return texts.slice(index === 0 ? 0 : ends[index - 1], ends[index]);
}
