import { checkTensorName, takesAtMost } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import { milliseconds } from '../base/timers.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { adopt, isPromise } from '../device/framework.js';
import { tensorAs } from '../device/tensor-copy.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import { metadataByPath, NO_SHARDS, type ShardSet, tensorsOf } from '../safetensors/shard-set.js';
import { readShards } from '../safetensors/shards.js';
import type { SliceRange } from '../safetensors/tensor-frame.js';
import { Plan } from '../transfer/plan.js';
import { wants } from '../transfer/select-tensors.js';
import { checkGetOptions, checkLoaderOptions, type GetOptions, type LoaderOptions } from './options.js';
import { type FilesByRank, filesOfRank, groupOf } from './process-group.js';
import { Session } from './session.js';
import { readSlice } from './slice-load.js';

/** Files whose headers were read and checked; a tensor is read when it is asked for. After close(), all is CLOSED. */
export interface OpenFiles<T = DeviceTensor> {
  /** Names of all tensors that the filter wants, in the order of files and offsets. */
  keys(): string[];
  /** `__metadata__` of each file, by path. */
  metadata(): Map<string, ReadonlyMap<string, string>>;
  /** What the header says of a tensor: dtype, shape, offsets. UNKNOWN_TENSOR. */
  frame(name: string): TensorFrame;
  /**
   * Reads a tensor; with another `dtype` or `device` than the options say it is copied once more. Rejects with
   * UNKNOWN_TENSOR, INVALID_ARGUMENT, UNSUPPORTED_DTYPE, the codes of copier and device, TIMEOUT, STALLED.
   */
  getTensor(name: string, options?: GetOptions): Promise<T>;
  /**
   * A part of a tensor, by one range for each dimension as Python slices. Reads only what it returns, and holes that
   * cost less than another read. As getTensor().
   */
  getSlice(name: string, ...ranges: SliceRange[]): Promise<T>;
  /** Ends reads in progress, which reject with CLOSED; waits for what is in flight. Tensors stay valid. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * Opens files, also by rank as addFilenames() takes them, and checks their headers. Rejects with INVALID_ARGUMENT,
 * UNKNOWN_COPIER and the codes of headers and files.
 */
export async function fastsafeOpen<T = DeviceTensor>(
  files: FilesByRank,
  options: LoaderOptions<T> = {},
): Promise<OpenFiles<T>> {
  takesAtMost(2, arguments, 'fastsafeOpen');
  const checked = checkLoaderOptions(options);
  const session = new Session(checked as LoaderOptions, 'what fastsafeOpen opened');
  session.check();
  const mine = filesOfRank(files, groupOf(checked), 'fastsafeOpen');
  const { headerOf } = session.engines;
  const watch = session.watch();
  const shardsOf = async () =>
    mine === undefined ? NO_SHARDS : readShards(mine, { ...checked, headerOf, calls: watch });
  const shards = await watch.during(shardsOf());
  session.noteFiles(shards.notes);
  return new LazyFiles(session, shards, checked);
}

class LazyFiles<T> implements OpenFiles<T> {
  readonly #session: Session;
  readonly #shards: ShardSet;
  readonly #options: LoaderOptions<T>;

  constructor(session: Session, shards: ShardSet, options: LoaderOptions<T>) {
    this.#session = session;
    this.#shards = shards;
    this.#options = options;
  }

  keys(): string[] {
    this.#session.check();
    takesAtMost(0, arguments, 'keys');
    const { filter } = this.#options;
    const names: string[] = [];
    for (const [file, index] of tensorsOf(this.#shards)) {
      const name = file.nameAt(index);
      if (!filter || wants(filter, name, file.frameAt(index))) names.push(name);
    }
    return names;
  }

  metadata(): Map<string, ReadonlyMap<string, string>> {
    this.#session.check();
    takesAtMost(0, arguments, 'metadata');
    return metadataByPath(this.#shards.metadata);
  }

  frame(name: string): TensorFrame {
    takesAtMost(1, arguments, 'frame');
    const { metadata, index } = this.#find(name);
    return metadata.frameAt(index);
  }

  async getTensor(name: string, options: GetOptions = {}): Promise<T> {
    const { metadata, index } = this.#find(name);
    takesAtMost(2, arguments, 'getTensor');
    const wanted = checkGetOptions(options);
    const { dtype, dtypePolicy } = this.#options;
    const plan = await Plan.ofTensors([{ metadata, selection: Uint32Array.of(index) }], { dtype, dtypePolicy });
    const started = milliseconds();
    const load = await this.#session.begin(plan, { window: 1, collectReady: false });
    let tensor: DeviceTensor;
    try {
      await this.#session.race(load.complete());
      tensor = load.tensor(0);
    } finally {
      this.#session.finish(load, started);
    }
    return this.#adopt(await tensorAs(tensor, wanted));
  }

  async getSlice(name: string, ...ranges: SliceRange[]): Promise<T> {
    const { metadata, index } = this.#find(name);
    const slice = metadata.frameAt(index).slice(...ranges);
    return this.#adopt(await readSlice(this.#session, metadata, slice));
  }

  close(): Promise<void> {
    return this.#session.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #find(name: string): { metadata: SafeTensorsMetadata; index: number } {
    this.#session.check();
    checkTensorName(name);
    const file = this.#shards.fileOf(name);
    const metadata = file === undefined ? undefined : this.#shards.metadata[file]!;
    const index = metadata?.indexOf(name) ?? -1;
    const { filter } = this.#options;
    if (!metadata || index < 0 || (filter && !wants(filter, name, metadata.frameAt(index)))) {
      throw new FastSafetensorsError('UNKNOWN_TENSOR', `no opened file has a tensor "${name}"`, { tensor: name });
    }
    return { metadata, index };
  }

  async #adopt(tensor: DeviceTensor): Promise<T> {
    const adopted = adopt(this.#options.framework, tensor);
    return isPromise(adopted) ? this.#session.adopted(adopted) : adopted;
  }
}
