import { realpath } from 'node:fs/promises';
import type { DTypeName } from '../../src/base/dtype.js';
import { InvalidArgumentError, ioError } from '../../src/base/errors.js';
import type { CopierType } from '../../src/copiers/registry.js';
import { Device } from '../../src/device/device.js';
import { DeviceTensor } from '../../src/device/device-tensor.js';
import { SafeTensorsFileLoader } from '../../src/loaders/file-loader.js';
import { FilesBufferOnDevice } from '../../src/loaders/files-buffer.js';
import { checkUnchanged } from '../../src/safetensors/file-identity.js';
import type { Files } from '../../src/safetensors/files.js';
import type { SafeTensorsMetadata } from '../../src/safetensors/metadata.js';
import { readShards } from '../../src/safetensors/shards.js';
import type { Progress } from '../../src/transfer/progress.js';

/** A tensor that can become a model's weight, and where its bytes are in its file. */
export interface SourceTensor {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** The file, links followed. */
  readonly path: string;
  /** Bytes from the beginning of the file. */
  readonly offset: number;
}

export interface WeightLoadOptions {
  readonly device: string;
  readonly copier?: CopierType;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

/** The tensors of the option `weights`: headers first, data once it is known which tensors the model takes. */
export class Weights {
  readonly sources = new Map<string, SourceTensor>();
  readonly #paths = new Map<SafeTensorsMetadata, string>(); // links followed
  readonly #own: Files | null; // null when the buffer is the user's
  #buffer: FilesBufferOnDevice | null;

  private constructor(own: Files | null, buffer: FilesBufferOnDevice | null) {
    this.#own = own;
    this.#buffer = buffer;
  }

  /** Reads headers, or takes those of a loaded buffer. The codes of headers and files; CLOSED for a closed buffer. */
  static async open(weights: Files | FilesBufferOnDevice, signal?: AbortSignal): Promise<Weights> {
    if (weights instanceof FilesBufferOnDevice) {
      const set = new Weights(null, weights);
      for (const { metadata, index } of weights.keys().map((name) => weights.sourceOf(name)))
        await set.#add(metadata, index);
      return set;
    }
    const set = new Weights(weights, null);
    for (const metadata of (await readShards(weights, {}, signal)).metadata) {
      for (let index = 0; index < metadata.tensorCount; ++index) await set.#add(metadata, index);
    }
    return set;
  }

  async #add(metadata: SafeTensorsMetadata, index: number): Promise<void> {
    const path = this.#paths.get(metadata) ?? (await real(metadata.path));
    this.#paths.set(metadata, path);
    const { name, dtype, shape, byteLength, dataOffsets } = metadata.frameAt(index);
    this.sources.set(name, { name, dtype, shape, byteLength, path, offset: metadata.dataStart + dataOffsets[0] });
  }

  /** Loads the named tensors. Of a loaded buffer it only checks the device: INVALID_ARGUMENT when it is another one. */
  async load(names: ReadonlySet<string>, options: WeightLoadOptions): Promise<void> {
    if (names.size === 0) return;
    if (this.#own === null) {
      const [name] = names;
      const tensor = await this.#buffer!.getTensor(name!);
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
    const loader = new SafeTensorsFileLoader({ device, copier, signal, filter: (name) => names.has(name) });
    try {
      await loader.addFilenames(this.#own);
      this.#buffer = await loader.copyFilesToDevice({ onProgress });
    } finally {
      void loader.close();
    }
  }

  /** A loaded tensor; the caller disposes it. */
  tensor(name: string): Promise<DeviceTensor> {
    return this.#buffer!.getTensor(name);
  }

  /** FILE_CHANGED, IO_ERROR: what was loaded and what ONNX Runtime reads itself would differ. */
  async checkUnchanged(): Promise<void> {
    for (const [{ identity }, path] of this.#paths) await checkUnchanged(path, identity);
  }

  /** Releases what was loaded here; what sessions use stays. Never closes the user's buffer. */
  async end(): Promise<void> {
    if (this.#own !== null) await this.#buffer?.close();
  }
}

async function real(path: string): Promise<string> {
  return realpath(path).catch((cause) => {
    throw ioError('read', path, cause);
  });
}
