import type { FileHandle } from 'node:fs/promises';
import { FastSafetensorsError } from '../../base/errors.js';
import { openRegularFile, readAt, readAtSync } from '../../base/regular-file.js';
import { noData } from '../../safetensors/other-format.js';
import type { Message } from './protobuf.js';
import { inlineBytes } from './tensor-data.js';
import { externalPlace, resolveLocation, type TensorInfo } from './tensor-proto.js';

/** Up to this many bytes are read at once: 100,000 turns of a thread take longer than the reads. */
export const SMALL_BYTES = 64 * 1024;

/**
 * Reads the data of one model's tensors, wherever they are. Each location is resolved once, and the file that was read
 * last stays open until another one is read, or close(): a model may have 100,000 tensors in one file, or each in its
 * own.
 */
export class TensorReader {
  readonly #path: string;
  readonly #options: { followLinks?: boolean };
  readonly #files = new Map<string, Promise<string>>();
  #open: { readonly file: string; readonly handle: FileHandle; readonly size: number } | undefined;

  /** `path`: the model's. */
  constructor(path: string, options: { followLinks?: boolean } = {}) {
    this.#path = path;
    this.#options = options;
  }

  /** The file of a location, links followed. UNSAFE_SHARD_PATH, MISSING_SHARD. `tensor`: for messages. */
  file(location: string, tensor: string): Promise<string> {
    let file = this.#files.get(location);
    if (!file) {
      file = resolveLocation(location, this.#path, tensor, this.#options);
      this.#files.set(location, file);
    }
    return file;
  }

  /**
   * The elements as little-endian bytes. Those of raw_data are a view of the model, not a copy. TENSOR_INVALID_INFO
   * when they do not fill the shape; for external data also UNSAFE_SHARD_PATH, MISSING_SHARD, UNEXPECTED_EOF and
   * SHORT_READ.
   */
  async read(tensor: Message, info: TensorInfo): Promise<Uint8Array> {
    if (info.bits === undefined) throw this.#invalid(info, `type ${info.dataType} has no elements of a fixed size`);
    if (info.byteLength === 0) return new Uint8Array(0); // without data, or a place where none can be
    const bytes = info.external ? await this.#readExternal(tensor, info) : inlineBytes(tensor, info, this.#path);
    if (bytes.length === info.byteLength) return bytes;
    throw this.#invalid(info, `${bytes.length} bytes of data, ${expected(info)}`);
  }

  async close(): Promise<void> {
    await this.#open?.handle.close();
    this.#open = undefined;
  }

  async #readExternal(tensor: Message, info: TensorInfo): Promise<Uint8Array> {
    const { location, offset, length } = externalPlace(tensor, info, this.#path);
    if (length !== info.byteLength) {
      throw this.#invalid(info, `external data of ${length} bytes, ${expected(info)}`);
    }
    const file = await this.file(location, info.name);
    const { handle, size } = await this.#openFile(file);
    // Checked before the allocation: the length is only the model's claim.
    if (offset + length > size) {
      const end = `${file}: tensor "${info.name}" ends at byte ${offset + length}, but the file has ${size}`;
      const message = end + (await noData(file));
      throw new FastSafetensorsError('UNEXPECTED_EOF', message, { path: file, tensor: info.name, offset });
    }
    const bytes = Buffer.alloc(length);
    const found = length <= SMALL_BYTES ? readAtSync(handle, bytes, offset) : await readAt(handle, bytes, offset);
    if (found === length) return bytes;
    const message = `${file}: the file ended at byte ${offset + found} while it was read`;
    throw new FastSafetensorsError('SHORT_READ', message, { path: file });
  }

  async #openFile(file: string): Promise<{ readonly handle: FileHandle; readonly size: number }> {
    if (this.#open?.file === file) return this.#open;
    await this.close();
    const handle = await openRegularFile(file);
    try {
      this.#open = { file, handle, size: (await handle.stat()).size };
      return this.#open;
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  #invalid({ name }: TensorInfo, what: string): FastSafetensorsError {
    const message = `${this.#path}: tensor "${name}": ${what}`;
    return new FastSafetensorsError('TENSOR_INVALID_INFO', message, { path: this.#path, tensor: name });
  }
}

function expected({ byteLength, dtype, dataType, shape }: TensorInfo): string {
  return `expected ${byteLength} for ${dtype ?? `type ${dataType}`} [${shape.join(', ')}]`;
}
