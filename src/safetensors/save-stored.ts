/** Tensors that go from file to file as they are: no byte of them comes to JavaScript. */
import type { DTypeName } from '../base/dtype.js';
import type { CallWatch } from '../base/waiting.js';
import { fileCall, native } from '../native/addon.js';
import type { SafeTensorsMetadata } from './metadata.js';

/** Bytes that are copied by one call: several at a time, and an abort waits for them. */
const COPY_BYTES = 16 * 1024 * 1024;

/** A tensor in a file whose header was read. */
export class StoredTensor {
  readonly metadata: SafeTensorsMetadata;
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** In the file. */
  readonly offset: number;
  /** Limits how long its file may hang. */
  readonly calls: CallWatch;

  constructor(metadata: SafeTensorsMetadata, index: number, calls: CallWatch) {
    const { name, dtype, shape, byteLength } = metadata.frameAt(index);
    this.metadata = metadata;
    this.name = name;
    this.dtype = dtype;
    this.shape = shape;
    this.byteLength = byteLength;
    this.offset = metadata.dataStart + metadata.packed.begins[index]!;
    this.calls = calls;
  }

  get nameBytes(): Uint8Array {
    return Buffer.from(this.name);
  }
}

/** A model of which every tensor is in a file, and stays as it is. */
export class StoredModel {
  readonly tensors: readonly StoredTensor[];

  constructor(tensors: readonly StoredTensor[]) {
    this.tensors = tensors;
  }
}

/** Ranges of one file that are copied together. */
export class StoredCopies {
  readonly #metadata: SafeTensorsMetadata;
  readonly #calls: CallWatch;
  readonly #ranges: number[] = []; // offset, length, position
  #bytes = 0;

  constructor({ metadata, calls }: StoredTensor) {
    this.#metadata = metadata;
    this.#calls = calls;
  }

  /** Whether take() will take any of its bytes. */
  mayTake({ metadata }: StoredTensor): boolean {
    return metadata === this.#metadata && this.#bytes < COPY_BYTES;
  }

  /** Takes bytes of a tensor, from its byte `done` on, to a position of the target. Returns how many. */
  take({ offset, byteLength }: StoredTensor, done: number, position: number): number {
    const length = Math.min(byteLength - done, COPY_BYTES - this.#bytes);
    const [lastOffset, lastLength, lastPosition] = this.#ranges.slice(-3) as [number, number, number];
    const follows = lastOffset + lastLength === offset + done && lastPosition + lastLength === position;
    if (follows) this.#ranges[this.#ranges.length - 2] = lastLength + length;
    else this.#ranges.push(offset + done, length, position);
    this.#bytes += length;
    return length;
  }

  /** IO_ERROR, FILE_CHANGED, UNEXPECTED_EOF, STALLED. `path`: of the target; `writeBack`: it will be synced. */
  async copy({ fd }: { readonly fd: number }, path: string, writeBack: boolean): Promise<void> {
    const { path: source, identity } = this.#metadata;
    const ranges = Float64Array.from(this.#ranges);
    const progress = native().newProgress();
    const begin = () => native().copyRanges(source, identity!, ranges, fd, path, writeBack, progress);
    const moved = () => native().progressOf(progress);
    await this.#calls.during(fileCall('a copy of', source, begin, this.#calls, moved));
  }
}
