import { checkTensorName, listOf, takesAtMost } from '../base/checks.js';
import { keepExample } from '../base/examples.js';
import { held, milliseconds, within } from '../base/timers.js';
import { DEFAULT_STALL_TIMEOUT_MS } from '../base/waiting.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { adopt, disposeWhenMade, isPromise } from '../device/framework.js';
import { tensorAs } from '../device/tensor-copy.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import { joinRoundRobin } from '../safetensors/round-robin.js';
import { metadataByPath, namesOf, placeOf, type ShardSet } from '../safetensors/shard-set.js';
import { readShards } from '../safetensors/shards.js';
import type { SliceRange } from '../safetensors/tensor-frame.js';
import { unknownTensor } from '../safetensors/unknown-tensor.js';
import { Plan } from '../transfer/plan.js';
import { selectTensors } from '../transfer/select-tensors.js';
import type { Found } from './mapped-regions.js';
import { checkGetOptions, checkLoaderOptions, type GetOptions, type LoaderOptions } from './options.js';
import { type FilesByRank, filesOfRanks, groupOf } from './process-group.js';
import { Session } from './session.js';
import { readSlice } from './slice-load.js';
import { SpotReads } from './spot-reads.js';

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
  /** Several tensors as one load, in the order of `names`. As getTensor(); after an error no tensor is left. */
  getTensors(names: Iterable<string>, options?: GetOptions): Promise<Map<string, T>>;
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
 * Opens files, also by rank as addFilenames() takes them, checks their headers, and asks the filter. Rejects with
 * INVALID_ARGUMENT, UNKNOWN_COPIER, the codes of headers and files, and what the filter throws.
 */
export async function fastsafeOpen<T = DeviceTensor>(
  files: FilesByRank,
  options: LoaderOptions<T> = {},
): Promise<OpenFiles<T>> {
  takesAtMost(2, arguments, 'fastsafeOpen');
  const checked = checkLoaderOptions(options);
  const session = new Session(checked as LoaderOptions, 'what fastsafeOpen opened');
  session.check();
  const ofRanks = filesOfRanks(files, groupOf(checked), 'fastsafeOpen');
  const { headerOf } = session.engines;
  const watch = session.watch();
  const shardsOf = async () =>
    joinRoundRobin(await Promise.all(ofRanks.map((own) => readShards(own, { ...checked, headerOf, calls: watch }))));
  const shards = await watch.during(shardsOf());
  session.noteFiles(shards.notes);
  const { filter } = checked;
  const inputs = filter ? await session.race(selectTensors(shards.inputs, filter)) : shards.inputs;
  if (session.placement) await session.race(session.placement.assign(inputs));
  return new LazyFiles(session, { ...shards, inputs }, checked);
}

class LazyFiles<T> implements OpenFiles<T> {
  static {
    keepExample(new LazyFiles({ options: {} } as Session, {} as ShardSet, {}));
  }

  readonly #session: Session;
  readonly #shards: ShardSet;
  readonly #options: LoaderOptions<T>;
  readonly #spot: SpotReads;

  constructor(session: Session, shards: ShardSet, options: LoaderOptions<T>) {
    this.#session = session;
    this.#shards = shards;
    this.#options = options;
    this.#spot = new SpotReads(session);
  }

  keys(): string[] {
    this.#session.check();
    takesAtMost(0, arguments, 'keys');
    return [...namesOf(this.#shards.inputs)];
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

  async getTensor(name: string, options?: GetOptions): Promise<T> {
    const found = this.#find(name);
    takesAtMost(2, arguments, 'getTensor');
    const wanted = options === undefined ? {} : checkGetOptions(options);
    let tensor = this.#spot.view(found);
    if (!tensor) {
      const read = this.#read([found]);
      [tensor] = isPromise(read) ? await read : read;
    }
    return this.#give(tensor!, wanted);
  }

  async getTensors(names: Iterable<string>, options: GetOptions = {}): Promise<Map<string, T>> {
    this.#session.check();
    takesAtMost(2, arguments, 'getTensors');
    const wanted = checkGetOptions(options);
    const distinct = new Set(listOf(names, 'getTensors', 'an array of names'));
    const found = Array.from(distinct, (name) => this.#find(name));
    const read = this.#spot.views(found) ?? this.#read(found);
    const loaded = isPromise(read) ? await read : read;
    const tensors = new Map<string, T>();
    try {
      for (let i = 0; i < found.length; ++i) {
        const given = this.#give(loaded[i]!, wanted);
        tensors.set(found[i]!.name, isPromise(given) ? await given : given);
      }
    } catch (error) {
      for (const tensor of loaded.slice(tensors.size)) tensor.dispose();
      for (const tensor of tensors.values()) disposeWhenMade(Promise.resolve(tensor));
      throw error;
    }
    return tensors;
  }

  /** The tensors, in the order in which they are asked for: read at once where that is possible, else as one load. */
  #read(wanted: readonly Found[]): DeviceTensor[] | Promise<DeviceTensor[]> {
    const turn = this.#spot.turnFor(wanted);
    if (!turn) return this.#spot.read(wanted) ?? this.#load(wanted);
    const later = turn.then(() => {
      this.#session.check();
      return this.#spot.viewsInTurn(wanted) ?? this.#spot.read(wanted) ?? this.#load(wanted);
    });
    return this.#session.race(later);
  }

  /** Reads tensors as one load; in the order in which they are asked for. */
  async #load(wanted: readonly Found[]): Promise<DeviceTensor[]> {
    const { dtype, dtypePolicy } = this.#options;
    const files = new Map<SafeTensorsMetadata, number[]>();
    for (const { metadata, index } of wanted) {
      const indices = files.get(metadata);
      if (indices) indices.push(index);
      else files.set(metadata, [index]);
    }
    const inputs = Array.from(files, ([metadata, indices]) => ({
      metadata,
      selection: Uint32Array.from(indices).sort(),
    }));
    const { placement } = this.#session;
    const fileOf = new Map([...files.keys()].map((metadata, file) => [metadata, file]));
    const plan = await this.#session.race(Plan.ofTensors(inputs, { dtype, dtypePolicy, placement }));
    const started = milliseconds();
    const load = await this.#session.begin(plan, { window: 1, collectReady: false, whole: true, keepsAll: true });
    try {
      await this.#session.race(load.complete());
      void this.#spot.open(wanted);
      return wanted.map(({ metadata, name }) => load.tensor(plan.itemOf(fileOf.get(metadata)!, name)!));
    } finally {
      this.#session.finish(load, started);
    }
  }

  async getSlice(name: string, ...ranges: SliceRange[]): Promise<T> {
    const { metadata, index } = this.#find(name);
    const slice = metadata.frameAt(index).slice(...ranges);
    return this.#adopt(await readSlice(this.#session, metadata, slice));
  }

  async close(): Promise<void> {
    const closed = this.#session.close();
    this.#spot.close();
    await closed;
    const { stallTimeoutMs = DEFAULT_STALL_TIMEOUT_MS } = this.#options;
    await held(within(stallTimeoutMs, this.#spot.opened()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #find(name: string): Found {
    this.#session.check();
    checkTensorName(name);
    const { metadata: files, inputs } = this.#shards;
    let file = files.length === 1 ? 0 : this.#shards.fileOf(name);
    if (file !== undefined) {
      const metadata = files[file]!;
      const index = metadata.indexOf(name);
      if (index < 0) file = undefined;
      else if (placeOf(index, inputs[file]!) >= 0) return { metadata, index, name };
    }
    const left = file === undefined ? 'no opened file has a' : 'the option filter leaves out';
    throw unknownTensor(`${left} tensor "${name}"`, name, namesOf(inputs));
  }

  /** A tensor as it was asked for, to the framework. */
  #give(tensor: DeviceTensor, wanted: ReturnType<typeof checkGetOptions>): T | Promise<T> {
    if (wanted.dtype === undefined && wanted.device === undefined) return this.#adopt(tensor);
    return tensorAs(tensor, wanted).then((given) => this.#adopt(given));
  }

  #adopt(tensor: DeviceTensor): T | Promise<T> {
    const adopted = adopt(this.#options.framework, tensor);
    return isPromise(adopted) ? this.#session.adopted(adopted) : adopted;
  }
}
