import type { FileHandle } from 'node:fs/promises';
import { FastSafetensorsError, ioError } from '../../base/errors.js';
import { openRegularFile, readAt } from '../../base/regular-file.js';
import { readModel } from './model-file.js';
import type { Message } from './protobuf.js';
import { ATTRIBUTE, FUNCTION, GRAPH, MODEL, NODE, TENSOR } from './schema.js';

/** A smaller file is read whole. */
const SPARSE_BYTES = 16 * 1024 * 1024;
/** Data of a tensor from this size on are left out. */
const LARGE = 256 * 1024;
/** Bytes of one read between them. */
const WINDOW = 64 * 1024;
/** Deeper nesting is read whole; the parser refuses it. */
const MAX_DEPTH = 64;

/** Messages that may contain large tensors: by field, the kind of message in it. */
interface Kind {
  readonly [field: number]: Kind;
}
const TENSOR_KIND: Kind = {};
const NODE_KIND: Record<number, Kind> = {};
const GRAPH_KIND: Kind = { [GRAPH.node]: NODE_KIND, [GRAPH.initializer]: TENSOR_KIND };
NODE_KIND[NODE.attribute] = {
  [ATTRIBUTE.tensor]: TENSOR_KIND,
  [ATTRIBUTE.graph]: GRAPH_KIND,
  [ATTRIBUTE.graphs]: GRAPH_KIND,
};
const MODEL_KIND: Kind = { [MODEL.graph]: GRAPH_KIND, [MODEL.functions]: { [FUNCTION.node]: NODE_KIND } };

/**
 * The bytes of an .onnx file without the data of large tensors, which are zeros until complete() reads them: memory
 * that nothing touches is not there. What those weights are is known before; most need not be read at all.
 */
export class SparseModel {
  /** As long as the file. */
  readonly bytes: Uint8Array;
  readonly #path: string;
  readonly #file: FileHandle | undefined; // undefined for a file that was read whole
  readonly #modified: bigint;
  readonly #holes = new Map<number, number>(); // from, to
  #end = 0; // before it, all but the holes was read

  private constructor(path: string, bytes: Uint8Array, file?: FileHandle, modified = 0n) {
    this.#path = path;
    this.bytes = bytes;
    this.#file = file;
    this.#modified = modified;
  }

  /** The caller closes it. As readModel; a file that is no protobuf is read as far as that shows. */
  static async open(path: string): Promise<SparseModel> {
    const file = await openRegularFile(path).catch((cause) => {
      throw ioError('read', path, cause);
    });
    try {
      const { size, mtimeNs } = await file.stat({ bigint: true });
      if (size < SPARSE_BYTES || size >= 2 ** 31) {
        await file.close();
        return new SparseModel(path, await readModel(path));
      }
      const model = new SparseModel(path, Buffer.alloc(Number(size)), file, mtimeNs);
      await model.#scan(0, Number(size), MODEL_KIND, 0);
      return model;
    } catch (error) {
      await file.close().catch(() => {});
      throw error;
    }
  }

  /**
   * Reads what was left out, but for the data of these messages of the model, which have to be as they were parsed.
   * IO_ERROR; FILE_CHANGED when somebody wrote to the file meanwhile.
   */
  async complete(unneeded: readonly Message[] = []): Promise<void> {
    if (!this.#file) return;
    for (const tensor of unneeded) {
      for (const data of tensor.bytes(TENSOR.rawData)) this.#holes.delete(data.byteOffset - this.bytes.byteOffset);
    }
    for (const [from, to] of this.#holes) await this.#read(from, to);
    this.#holes.clear();
    const { size, mtimeNs } = await this.#file.stat({ bigint: true });
    if (size === BigInt(this.bytes.length) && mtimeNs === this.#modified) return;
    const message = `${this.#path} changed while it was read; load it again when nobody writes to it`;
    throw new FastSafetensorsError('FILE_CHANGED', message, { path: this.#path });
  }

  async close(): Promise<void> {
    await this.#file?.close();
  }

  /** Reads the records of a message in [from, to). What is malformed is read, for the parser to refuse it. */
  async #scan(from: number, to: number, kind: Kind, depth: number): Promise<void> {
    for (let at = from; at < to; ) {
      await this.#need(at, Math.min(at + 20, to)); // a tag and a length
      const tag = this.#varint(at, to);
      const length = tag && this.#lengthOf(tag.value, tag.end, to);
      if (!tag || !length || length.end + length.value > to || depth > MAX_DEPTH) return this.#need(at, to);
      const field = Math.floor(tag.value / 8);
      const body = length.end;
      at = body + length.value;
      const inner = tag.value % 8 === 2 && length.value >= LARGE ? kind[field] : undefined;
      if (inner) await this.#scan(body, at, inner, depth + 1);
      else if (kind === TENSOR_KIND && field === TENSOR.rawData && length.value >= LARGE) this.#leaveOut(body, at);
      else await this.#need(body, at);
    }
  }

  /** What a record has behind its tag: a length and so many bytes, or bytes alone. Undefined for what is malformed. */
  #lengthOf(tag: number, at: number, to: number): { value: number; end: number } | undefined {
    if (tag % 8 === 2) return this.#varint(at, to);
    if (tag % 8 === 0) {
      const number = this.#varint(at, to);
      return number && { value: number.end - at, end: at };
    }
    const fixed = new Map([
      [1, 8],
      [5, 4],
    ]).get(tag % 8);
    return fixed === undefined ? undefined : { value: fixed, end: at };
  }

  #varint(at: number, to: number): { value: number; end: number } | undefined {
    let value = 0;
    for (let i = 0; i < 10 && at + i < to; ++i) {
      const byte = this.bytes[at + i]!;
      value += (byte & 0x7f) * 2 ** (7 * i);
      if (byte < 0x80) return { value, end: at + i + 1 };
    }
    return undefined;
  }

  #leaveOut(from: number, to: number): void {
    this.#holes.set(from, to);
    this.#end = Math.max(this.#end, to);
  }

  /** Reads [from, to), and some more where reads are small. */
  async #need(from: number, to: number): Promise<void> {
    if (to <= this.#end) return;
    const start = Math.max(from, this.#end);
    const end = Math.min(Math.max(to, start + WINDOW), this.bytes.length);
    this.#end = end;
    await this.#read(start, end);
  }

  async #read(from: number, to: number): Promise<void> {
    const part = this.bytes.subarray(from, to);
    const length = await readAt(this.#file!, part, from).catch((cause) => {
      throw ioError('read', this.#path, cause);
    });
    if (length === part.length) return;
    const message = `${this.#path} ends at byte ${from + length}, but had ${this.bytes.length} when it was opened`;
    throw new FastSafetensorsError('FILE_CHANGED', message, { path: this.#path });
  }
}
