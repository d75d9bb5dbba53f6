import { resolve } from 'node:path';
import type { DTypeName } from '../../src/base/dtype.js';
import { InvalidArgumentError, ioError } from '../../src/base/errors.js';
import type { FileCalls } from '../../src/base/waiting.js';
import type { CopierType } from '../../src/copiers/registry.js';
import { Device } from '../../src/device/device.js';
import { DeviceTensor } from '../../src/device/device-tensor.js';
import { SafeTensorsFileLoader } from '../../src/loaders/file-loader.js';
import { FilesBufferOnDevice } from '../../src/loaders/files-buffer.js';
import type { FileOptions } from '../../src/loaders/options.js';
import { realpath } from '../../src/native/addon.js';
import { checkUnchanged } from '../../src/safetensors/file-identity.js';
import type { Files } from '../../src/safetensors/files.js';
import type { SafeTensorsMetadata } from '../../src/safetensors/metadata.js';
import { type ShardSet, tensorsOf } from '../../src/safetensors/shard-set.js';
import { readShards } from '../../src/safetensors/shards.js';
import type { Progress } from '../../src/transfer/progress.js';

/** A tensor that can become a model's weight: what it is in memory, and where it came from. */
export interface SourceTensor {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** The file, links followed. */
  readonly path: string;
  /** The dtype in the file; another one when the load converted the tensor. */
  readonly storedAs: DTypeName;
  /** Where the very bytes are in the file, from its beginning; undefined for a converted tensor, which has no place. */
  readonly offset: number | undefined;
}

export interface WeightLoadOptions extends FileOptions {
  readonly device: string;
  readonly copier?: CopierType;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
  /** Limits the looks at files. */
  readonly calls?: FileCalls;
}

/** The tensors of the option `weights`: headers first, data once it is known which tensors the model takes. */
export class Weights {
  readonly sources = new Map<string, SourceTensor>();
  readonly #paths = new Map<SafeTensorsMetadata, string>(); // links followed
  readonly #calls: FileCalls | undefined;
  readonly #own: ShardSet[] = []; // to be loaded; none when the buffer is the user's
  readonly #buffers: FilesBufferOnDevice[] = []; // the user's, or one for each of #own

  private constructor(calls?: FileCalls) {
    this.#calls = calls;
  }

  /** Reads headers, or takes those of a loaded buffer. The codes of headers and files; CLOSED for a closed buffer. */
  static async open(
    weights: Files | FilesBufferOnDevice,
    options: FileOptions & { calls?: FileCalls },
  ): Promise<Weights> {
    const set = new Weights(options.calls);
    if (weights instanceof FilesBufferOnDevice) {
      set.#buffers.push(weights);
      for (const name of weights.keys()) {
        const { metadata, index, ...inMemory } = weights.sourceOf(name);
        await set.#follow(metadata, true);
        set.#add(metadata, index, inMemory);
      }
    } else {
      await set.addShards(await readShards(weights, { ...options }));
    }
    return set;
  }

  /** Nothing yet, for addShards. */
  static none(calls?: FileCalls): Weights {
    return new Weights(calls);
  }

  /** Adds tensors of files, under names that are not taken. IO_ERROR. */
  async addShards(shards: ShardSet): Promise<void> {
    this.#own.push(shards);
    for (const metadata of shards.metadata) await this.#follow(metadata, false);
    for (const [metadata, index] of tensorsOf(shards)) this.#add(metadata, index);
  }

  async #follow(metadata: SafeTensorsMetadata, isLoaded: boolean): Promise<void> {
    if (!this.#paths.has(metadata)) this.#paths.set(metadata, await real(metadata.path, isLoaded, this.#calls));
  }

  #add(metadata: SafeTensorsMetadata, index: number, inMemory?: Pick<SourceTensor, 'dtype' | 'byteLength'>): void {
    const path = this.#paths.get(metadata)!;
    const frame = metadata.frameAt(index);
    const { name, shape, dtype: storedAs } = frame;
    const { dtype, byteLength } = inMemory ?? frame;
    const offset = dtype === storedAs ? metadata.dataStart + frame.dataOffsets[0] : undefined;
    this.sources.set(name, { name, dtype, shape, byteLength, path, storedAs, offset });
  }

  /** Loads the named tensors. Of a loaded buffer it only checks the device: INVALID_ARGUMENT when it is another one. */
  async load(names: ReadonlySet<string>, options: WeightLoadOptions): Promise<void> {
    if (names.size === 0) return;
    if (this.#own.length === 0) {
      const [name] = names;
      const tensor = await this.#buffers[0]!.getTensor(name!);
      if (!(tensor instanceof DeviceTensor)) {
        const what = 'this buffer hands out tensors of a framework; load it without the option framework';
        throw new InvalidArgumentError(`weights: ${what}`);
      }
      const found = tensor.device.toString();
      tensor.dispose();
      const expected = Device.parse(options.device).toString();
      if (found !== expected)
        throw new InvalidArgumentError(
          `weights: they are on ${found}, but the session runs on ${expected}; load them with device: '${expected}'`,
        );
      return;
    }
    const { device, copier, signal, onProgress } = options;
    // Not mapped: a session reads its weights in each run, and does so faster from huge pages.
    const loader = new SafeTensorsFileLoader({
      device,
      copier,
      signal,
      mmap: false,
      filter: (name) => names.has(name),
    });
    try {
      for (const shards of this.#own) {
        loader.reset(); // each set is loaded into a buffer of its own
        await loader.addShards(shards);
        this.#buffers.push(await loader.copyFilesToDevice({ onProgress }));
      }
    } finally {
      void loader.close();
    }
  }

  /** A loaded tensor; the caller disposes it. */
  tensor(name: string): Promise<DeviceTensor> {
    const file = this.#own.findIndex((shards) => shards.fileOf(name) !== undefined);
    return this.#buffers[Math.max(file, 0)]!.getTensor(name);
  }

  /** FILE_CHANGED, IO_ERROR: what was loaded and what ONNX Runtime reads itself from these files would differ. */
  async checkUnchanged(files: ReadonlySet<string>): Promise<void> {
    for (const [{ identity }, path] of this.#paths) {
      if (files.has(path)) await checkUnchanged(path, identity, this.#calls);
    }
  }

  /** Releases what was loaded here; what sessions use stays. Never closes the user's buffer. */
  async end(): Promise<void> {
    if (this.#own.length > 0) for (const buffer of this.#buffers) await buffer.close();
  }
}

/** Links followed. The file of a loaded buffer may be gone: that matters where ONNX Runtime has to read it. */
async function real(path: string, isLoaded: boolean, calls?: FileCalls): Promise<string> {
  return realpath(path, calls).catch((cause) => {
    if (isLoaded) return resolve(path);
    throw ioError('read', path, cause);
  });
}
