import { isUint8Array } from 'node:util/types';
import { boolean, checkOptions, describe } from '../base/checks.js';
import { DTYPE_NAMES } from '../base/dtype.js';
import { InvalidArgumentError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { parseHeader, readHeader } from '../native/addon.js';
import type { HeaderReadOptions, NativeFileIdentity, NativeHeader } from '../native/packed.js';
import { TensorFrame } from './tensor-frame.js';

export { TensorFrame } from './tensor-frame.js';

export interface SafeTensorsMetadataOptions {
  /** Accept bytes behind the last tensor; `trailingBytes` then tells how many. Default: refuse them. */
  readonly allowTrailingBytes?: boolean;
}

/** Names put into the lookup table between looks at the clock: well below a millisecond's worth. */
const BLOCK = 1024;

/**
 * A file's checked header. Names, shapes and offsets stay packed as the core made them; a TensorFrame is made when it is asked for. Tensors are
 * in the order of their offsets. Immutable.
 */
export class SafeTensorsMetadata {
  /** '' when it was made from a buffer. */
  readonly path: string;
  /** Bytes of JSON, padding included. */
  readonly headerLength: number;
  /** Bytes of the whole file. */
  readonly sizeBytes: number;
  readonly tensorCount: number;
  /** Bytes behind the last tensor; 0 unless allowTrailingBytes accepted some. */
  readonly trailingBytes: number;
  /** Where the data begins in the file: offsets of tensors count from here. */
  readonly dataStart: number;
  /** What the file was when its header was read, to find out whether it changed; null for a buffer. @internal */
  readonly identity: NativeFileIdentity | null;

  readonly #header: NativeHeader;
  readonly #metadata = new Map<string, string>(); // the first #metadata.size entries of `__metadata__`
  readonly #indices = new Map<string, number>(); // of the first #indices.size names

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

  /** Reads and checks a file's header, off the event loop. Rejects with the codes of the format's checks, IO_ERROR or FILE_CHANGED. */
  static async fromFile(path: string, options: SafeTensorsMetadataOptions = {}): Promise<SafeTensorsMetadata> {
    if (typeof path !== 'string' || path === '' || path.includes('\0')) {
      throw new InvalidArgumentError(`fromFile: expected a path, found ${describe(path)}`);
    }
    return SafeTensorsMetadata.fromNative(await readHeader(path, readOptions(options)), path);
  }

  /** Checks a whole file in memory; METADATA_INCOMPLETE_BUFFER when its data is cut short. The bytes must not change until the promise settles. */
  static async fromBuffer(buffer: Uint8Array, options: SafeTensorsMetadataOptions = {}): Promise<SafeTensorsMetadata> {
    if (!isUint8Array(buffer)) {
      throw new InvalidArgumentError(`fromBuffer: expected a Uint8Array, found ${describe(buffer)}`);
    }
    return SafeTensorsMetadata.fromNative(await parseHeader(buffer, readOptions(options)), '');
  }

  /**
   * Makes the lookup table without holding the event loop: get() and has() of 100,000 names would do so for 30 ms. Who asks for no tensor by its name does without it,
   * since the names of a large table survive several collections. @internal
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

  /** Of `__metadata__`. */
  get metadata(): ReadonlyMap<string, string> {
    this.#metadataUpTo(this.#header.metadataEnds.length / 2);
    return this.#metadata;
  }

  /** Every tensor's name, in the order of offsets. */
  keys(): string[] {
    this.#indexUpTo(this.tensorCount);
    return [...this.#indices.keys()]; // names are cut out of the header's text once
  }

  has(name: string): boolean {
    return this.indexOf(name) >= 0;
  }

  get(name: string): TensorFrame | undefined {
    const index = this.indexOf(name);
    return index < 0 ? undefined : this.frameAt(index);
  }

  *[Symbol.iterator](): Generator<TensorFrame, void, void> {
    for (let i = 0; i < this.tensorCount; ++i) yield this.frameAt(i);
  }

  /** The place of a tensor in the order of offsets, -1 for none. @internal */
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

  /** The arrays themselves. @internal */
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
    return new TensorFrame(this.nameAt(index), DTYPE_NAMES[dtypes[index]!]!, this.shapeAt(index), [
      begins[index]!,
      ends[index]!,
    ]);
  }
}

function readOptions(options: SafeTensorsMetadataOptions): HeaderReadOptions {
  const { allowTrailingBytes = false } = checkOptions(options, { allowTrailingBytes: boolean });
  return { allowTrailingBytes };
}

/** Text number `index` of several that were packed into one string. */
export function textAt(texts: string, ends: Uint32Array, index: number): string {
  return texts.slice(index === 0 ? 0 : ends[index - 1], ends[index]);
}
