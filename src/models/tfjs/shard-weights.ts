/** Reading the weights of a TensorFlow.js model from its own shards (*.bin). */
import type { FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { DTypeName } from '../../base/dtype.js';
import { FastSafetensorsError, ioError } from '../../base/errors.js';
import { openRegularFile, readAt } from '../../base/regular-file.js';
import { namedFile } from '../../safetensors/named-file.js';
import { noData } from '../../safetensors/other-format.js';
import type { TfjsModel, WeightSpec, WeightsGroup } from './model-json.js';

/** A weight in a model's shards. */
interface ShardWeight {
  readonly spec: WeightSpec;
  /** Its dtype in a .safetensors file: U8 for strings, packed as in TensorFlow.js. */
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** Reads `length` bytes from its byte `offset` on. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** The dtype and the bytes of an element, by that of the manifest or, for a quantized weight, of its quantization. */
const STORED = {
  float32: ['F32', 4],
  int32: ['I32', 4],
  bool: ['BOOL', 1],
  complex64: ['C64', 8],
  uint8: ['U8', 1],
  uint16: ['U16', 2],
  float16: ['F16', 2],
} as const;

function allocate(length: number): Uint8Array {
  try {
    return new Uint8Array(length);
  } catch (cause) {
    const message = `a weight of ${length} bytes does not fit into memory`;
    throw new FastSafetensorsError('OUT_OF_HOST_MEMORY', message, { cause });
  }
}

/** The files of one group of weights, read as one sequence of bytes. */
class GroupFiles {
  readonly #files: { handle: FileHandle; path: string; begin: number; size: number }[] = [];
  size = 0;

  static async open(group: WeightsGroup, model: string, options: { followLinks?: boolean }): Promise<GroupFiles> {
    const files = new GroupFiles();
    try {
      for (const name of group.paths) {
        const by = { path: model, says: `${model} names the file ${JSON.stringify(name)}` };
        await files.#add((await namedFile(name, dirname(model), by, options)).path, model);
      }
      return files;
    } catch (error) {
      await files.close();
      throw error;
    }
  }

  async #add(path: string, model: string): Promise<void> {
    const handle = await openRegularFile(path).catch((cause) => {
      const message = `${model} names ${path}, which cannot be opened: ${cause.message}`;
      throw new FastSafetensorsError('MISSING_SHARD', message, { path, cause });
    });
    const file = { handle, path, begin: this.size, size: 0 };
    this.#files.push(file);
    file.size = (await handle.stat()).size;
    this.size += file.size;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = allocate(length);
    for (const { handle, path, begin, size } of this.#files) {
      const from = Math.max(offset, begin);
      const end = Math.min(offset + length, begin + size);
      if (from >= end) continue;
      const part = bytes.subarray(from - offset, end - offset);
      const found = await readAt(handle, part, from - begin).catch((cause) => {
        throw ioError('read', path, cause);
      });
      if (found < part.length)
        throw new FastSafetensorsError('FILE_CHANGED', `${path}: became shorter while it was read`, { path });
    }
    return bytes;
  }

  /** What the first file that holds no data is instead; '' where all may. */
  async noData(): Promise<string> {
    for (const { path } of this.#files) {
      const found = await noData(path);
      if (found !== '') return `${found} (${path})`;
    }
    return '';
  }

  async close(): Promise<void> {
    await Promise.all(this.#files.map(({ handle }) => handle.close()));
  }
}

/**
 * The weights of a model in the order of its manifest; each can be read until the next one is asked for. Rejects with
 * MISSING_SHARD, UNSAFE_SHARD_PATH, UNEXPECTED_EOF when shards are too short, METADATA_INCOMPLETE_BUFFER when they are
 * too long, FILE_CHANGED, IO_ERROR or OUT_OF_HOST_MEMORY.
 */
export async function* shardWeights(
  { path, json }: TfjsModel,
  options: { followLinks?: boolean } = {},
): AsyncGenerator<ShardWeight, void, void> {
  for (const group of json.weightsManifest ?? []) {
    const files = await GroupFiles.open(group, path, options);
    try {
      let at = 0;
      for (const spec of group.weights) {
        const begin = at;
        const byteLength = await bytesOf(spec, files, begin, path);
        at += byteLength;
        if (at > files.size) throw await tooShort(path, spec, at, files);
        const [dtype] = spec.dtype === 'string' ? (['U8'] as const) : STORED[spec.quantization?.dtype ?? spec.dtype];
        const shape = spec.dtype === 'string' ? [byteLength] : spec.shape;
        yield { spec, dtype, shape, byteLength, read: (offset, length) => files.read(begin + offset, length) };
      }
      if (at < files.size) {
        const found = `${group.paths.join(', ')} ${group.paths.length > 1 ? 'have' : 'has'} ${files.size}`;
        const message = `${path}: its weights take ${at} bytes, but ${found}`;
        throw new FastSafetensorsError('METADATA_INCOMPLETE_BUFFER', message, { path });
      }
    } finally {
      await files.close();
    }
  }
}

async function bytesOf(spec: WeightSpec, files: GroupFiles, begin: number, path: string): Promise<number> {
  const count = spec.shape.reduce((product, size) => product * size, 1);
  if (spec.dtype !== 'string') return count * STORED[spec.quantization?.dtype ?? spec.dtype][1];
  let length = 0;
  for (let i = 0; i < count; ++i) {
    if (begin + length + 4 > files.size) throw await tooShort(path, spec, begin + length + 4, files);
    length += 4 + new DataView((await files.read(begin + length, 4)).buffer).getUint32(0, true);
  }
  return length;
}

async function tooShort(path: string, { name }: WeightSpec, end: number, files: GroupFiles): Promise<Error> {
  const short = `${path}: the weight "${name}" ends at byte ${end} of its shards, but they have ${files.size}`;
  const message = short + (await files.noData());
  return new FastSafetensorsError('UNEXPECTED_EOF', message, { path, tensor: name });
}
