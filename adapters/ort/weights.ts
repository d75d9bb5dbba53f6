import { realpath } from 'node:fs/promises';
import type { DTypeName } from '../../src/base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';
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
  readonly sources: ReadonlyMap<string, SourceTensor>;
  readonly #files: readonly { readonly path: string; readonly metadata: SafeTensorsMetadata }[];
  readonly #own: Files | null; // null when the buffer is the user's
  #buffer: FilesBufferOnDevice | null;

  private constructor(
    sources: Map<string, SourceTensor>,
    files: readonly { path: string; metadata: SafeTensorsMetadata }[],
    own: Files | null,
    buffer: FilesBufferOnDevice | null,
  ) {
    this.sources = sources;
    this.#files = files;
    this.#own = own;
    this.#buffer = buffer;
  }

  /** Reads headers, or takes those of a loaded buffer. The codes of headers and files; CLOSED for a closed buffer. */
  static async open(weights: Files | FilesBufferOnDevice, signal?: AbortSignal): Promise<Weights> {
    const sources = new Map<string, SourceTensor>();
    const files: { path: string; metadata: SafeTensorsMetadata }[] = [];
    const add = (metadata: SafeTensorsMetadata, path: string, index: number): void => {
      const { name, dtype, shape, byteLength, dataOffsets } = metadata.frameAt(index);
      const offset = metadata.packed.dataStart + dataOffsets[0];
      sources.set(name, { name, dtype, shape, byteLength, path, offset });
    };
    if (weights instanceof FilesBufferOnDevice) {
      const paths = new Map<SafeTensorsMetadata, string>();
      for (const name of weights.keys()) {
        const { metadata, index } = weights.sourceOf(name);
        let path = paths.get(metadata);
        if (path === undefined) {
          path = await real(metadata.path);
          paths.set(metadata, path);
          files.push({ path, metadata });
        }
        add(metadata, path, index);
      }
      return new Weights(sources, files, null, weights);
    }
    const shards = await readShards(weights, {}, signal);
    for (const metadata of shards.metadata) {
      const path = await real(metadata.path);
      files.push({ path, metadata });
      for (let i = 0; i < metadata.tensorCount; ++i) add(metadata, path, i);
    }
    return new Weights(sources, files, weights, null);
  }

  /** Loads the named tensors. Of a loaded buffer it only checks the device: INVALID_ARGUMENT when it is another one. */
  async load(names: ReadonlySet<string>, options: WeightLoadOptions): Promise<void> {
    if (names.size === 0) return;
    if (this.#own === null) {
      const [name] = names;
      const tensor = await this.#buffer!.getTensor(name!);
      if (!(tensor instanceof DeviceTensor))
        throw new InvalidArgumentError(
          'weights: this buffer hands out tensors of a framework; load it without the option framework',
        );
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
    for (const { path, metadata } of this.#files) await checkUnchanged(path, metadata.identity);
  }

  /** Releases what was loaded here; what sessions use stays. Never closes the user's buffer. */
  async end(): Promise<void> {
    if (this.#own !== null) await this.#buffer?.close();
  }
}

async function real(path: string): Promise<string> {
  return realpath(path).catch((cause) => {
    throw new FastSafetensorsError('IO_ERROR', `cannot read ${path}: ${(cause as Error).message}`, { path, cause });
  });
}
