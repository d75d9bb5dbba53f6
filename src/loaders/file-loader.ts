import { checkTensorName, takesAtMost } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import { keepExample } from '../base/examples.js';
import { held, milliseconds } from '../base/timers.js';
import type { CallWatch } from '../base/waiting.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import type { NativeHeaderFdCache } from '../native/core.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import { joinRoundRobin } from '../safetensors/round-robin.js';
import { checkDistinct, joinSets, metadataByPath, namesOf, type ShardSet } from '../safetensors/shard-set.js';
import { readShards } from '../safetensors/shards.js';
import { unknownTensor } from '../safetensors/unknown-tensor.js';
import { Arrival } from '../transfer/arrival.js';
import type { PlanInput } from '../transfer/items.js';
import { Plan } from '../transfer/plan.js';
import type { Progress } from '../transfer/progress.js';
import { selectTensors } from '../transfer/select-tensors.js';
import type { Estimate, StreamEstimate } from './estimate.js';
import { FilesBufferOnDevice } from './files-buffer.js';
import type { LoadReport } from './load-report.js';
import { checkCopyOptions, checkLoaderOptions, type LoaderOptions } from './options.js';
import { type FilesByRank, filesOfRanks, groupOf, type ProcessGroup } from './process-group.js';
import { planOfParts, RANK_WINDOW, RankTensors } from './rank-tensors.js';
import { Session } from './session.js';
import { applyRules, type Names, type ShardRules } from './shard-rules.js';
import { LoadedTensors } from './tensor-source.js';

/** Options of one load, in place of the loader's. */
export interface CopyOptions {
  /** See LoaderOptions. */
  dtype?: LoaderOptions['dtype'];
  /** Ends this load when aborted, beside the loader's signal. */
  signal?: AbortSignal;
  /** See LoaderOptions. */
  onProgress?: (progress: Progress) => void;
  /**
   * true: the buffer is there as soon as the load has begun, and each tensor, from getTensor() and the like, when its
   * own bytes are. When the load fails, they reject with its error; closing the buffer ends it. The loader's report is
   * complete when the load is. Default: false, the buffer comes when everything is loaded.
   */
  early?: boolean;
}

/** Loads whole files into device memory, after their headers were read, as fastsafetensors' class of this name. */
export class SafeTensorsFileLoader<T = DeviceTensor> {
  readonly #options: LoaderOptions<T>;
  readonly #session: Session;
  readonly #pg: ProcessGroup;
  #shards: ShardSet | undefined;
  #inputs: readonly PlanInput[] | undefined;
  #plan: Plan | undefined;
  readonly #headerFds = new Set<NativeHeaderFdCache>(); // of the files that were added
  #adding: Promise<void> = Promise.resolve(); // one after the other, in the order of the calls
  #headersMs = 0; // that reading them took, of the time of the first load
  #addedMs = 0; // when the last call ended
  #estimate: Estimate = { deviceBytes: 0, stagingBytes: 0, tensors: 0 };
  #resets = 0;

  /** Checks the options: INVALID_ARGUMENT, UNKNOWN_COPIER, UNSUPPORTED_DTYPE. */
  constructor(options: LoaderOptions<T> = {}) {
    takesAtMost(1, arguments, 'SafeTensorsFileLoader');
    this.#options = checkLoaderOptions(options);
    this.#session = new Session(this.#options as LoaderOptions);
    const { rank, size, broadcast } = groupOf(this.#options);
    if (size > 1) broadcast?.check(this.#options as LoaderOptions);
    this.#pg = { rank, size, broadcast };
  }

  /** Figures of the last load. */
  get report(): LoadReport {
    return this.#session.report;
  }

  /**
   * Reads and checks every header, and adds the files to those added before; reset() forgets these. Files belong to
   * rank 0 unless given by rank, and each rank of a group has the tensors of all files; `{ 0: [] }` adds none. They may
   * stay open until they are loaded, or until reset() or close(). Rejects with the codes of headers and files,
   * DUPLICATE_TENSOR for a tensor that was added before, INVALID_ARGUMENT, CLOSED, or the reason of the aborted signal;
   * then nothing was added.
   */
  async addFilenames(files: FilesByRank): Promise<void> {
    const session = this.#session;
    session.check();
    takesAtMost(1, arguments, 'addFilenames');
    const ofRanks = filesOfRanks(files, this.#pg, 'addFilenames');
    const { headerOf } = session.engines;
    await this.#take(async (fdCache, calls) => {
      const chooseEarly = (paths: readonly string[]): void => session.engines.chooseEarly(paths);
      const found = ofRanks.length === 1 ? chooseEarly : undefined;
      const options = { ...this.#options, fdCache, headerOf, calls, found };
      return joinRoundRobin(await Promise.all(ofRanks.map((own) => readShards(own, options))));
    });
  }

  /** The same for headers that were read, or made, already. @internal */
  async addShards(shards: ShardSet): Promise<void> {
    this.#session.check();
    await this.#take(async () => shards);
  }

  async #take(read: (fdCache: NativeHeaderFdCache | undefined, calls: CallWatch) => Promise<ShardSet>): Promise<void> {
    const session = this.#session;
    const headerFds = session.engines.newHeaderFds();
    const began = milliseconds();
    const watch = session.watch();
    const reading = watch.during(read(headerFds, watch));
    reading.catch(() => {}); // it may fail while this waits for those that were called before
    const added = this.#adding.then(async () => this.#add(await reading, headerFds, watch));
    this.#adding = added.catch(() => {});
    try {
      await session.race(added);
      this.#headersMs += milliseconds() - Math.max(began, this.#addedMs); // of calls at a time, once
      this.#addedMs = milliseconds();
    } catch (error) {
      session.engines.releaseHeaderFds(headerFds);
      throw error;
    }
  }

  async #add(added: ShardSet, headerFds: NativeHeaderFdCache | undefined, watch: CallWatch): Promise<void> {
    const session = this.#session;
    const { filter, dtype, dtypePolicy } = this.#options;
    const before = this.#shards;
    const resets = this.#resets;
    if (before) await session.race(checkDistinct(before, added));
    const wanted = filter ? await session.race(selectTensors(added.inputs, filter)) : added.inputs;
    const inputs = [...(this.#inputs ?? []), ...wanted];
    const { placement } = session;
    if (placement) await session.race(placement.assign(inputs));
    const plan = await session.race(Plan.ofTensors(inputs, { dtype, dtypePolicy, placement }));
    const estimate = await watch.during(session.estimate(plan, watch));
    const shards = before ? await joinSets(before, added) : added;
    if (resets !== this.#resets) return this.#add(added, headerFds, watch); // `before` was forgotten meanwhile
    this.#estimate = estimate;
    if (headerFds) this.#headerFds.add(headerFds);
    this.#shards = shards;
    session.noteFiles(added.notes, before?.notes);
    this.#inputs = inputs;
    this.#plan = plan;
  }

  /** Names of all tensors that will be loaded, in the order of files and offsets. NO_FILES, CLOSED. */
  keys(): string[] {
    takesAtMost(0, arguments, 'keys');
    return this.#planned().names();
  }

  /** UNKNOWN_TENSOR, NO_FILES, CLOSED. */
  getShape(name: string): readonly number[] {
    takesAtMost(1, arguments, 'getShape');
    const { metadata, index } = this.#find(name);
    return metadata.shapeAt(index);
  }

  /**
   * What the header says of a tensor: its shape, its dtype and offsets in the file. UNKNOWN_TENSOR, NO_FILES, CLOSED.
   */
  frame(name: string): TensorFrame {
    takesAtMost(1, arguments, 'frame');
    const { metadata, index } = this.#find(name);
    return metadata.frameAt(index);
  }

  /** `__metadata__` of each file that was added, by its path. NO_FILES, CLOSED. */
  metadata(): Map<string, ReadonlyMap<string, string>> {
    takesAtMost(0, arguments, 'metadata');
    this.#planned();
    return metadataByPath(this.#shards!.metadata);
  }

  #find(name: string): { metadata: SafeTensorsMetadata; index: number } {
    const plan = this.#planned();
    checkTensorName(name);
    const names = new TensorNames(plan, this.#shards!);
    const item = names.find(name);
    if (item === undefined) throw names.unknown(name);
    return { metadata: plan.metadataOf(item), index: plan.tensors[item]! };
  }

  /**
   * Loads every tensor, and gives them when all are there, or with `early` each when it is. Of a group of several ranks
   * it reads nothing: the buffer does, when it is asked for tensors or parts of them. Rejects with the codes of files,
   * copier and device, NO_FILES, CLOSED, TIMEOUT, STALLED, or the reason of an aborted signal.
   */
  async copyFilesToDevice(options: CopyOptions = {}): Promise<FilesBufferOnDevice<T>> {
    const session = this.#session;
    takesAtMost(1, arguments, 'copyFilesToDevice');
    const { dtype, signal, onProgress, early = false } = checkCopyOptions(options);
    session.check(signal);
    const planned = this.#planned();
    const shards = this.#shards!; // reset() may be called meanwhile
    const { placement } = session;
    const conversion = { dtype, dtypePolicy: this.#options.dtypePolicy };
    const plan = dtype
      ? await session.race(Plan.ofTensors(this.#inputs!, { ...conversion, placement }), signal)
      : planned;
    const headerFds = [...this.#headerFds];
    const names = new TensorNames(plan, shards);
    const { framework } = this.#options;
    if (this.#pg.size > 1) {
      for (const fds of headerFds) this.#release(fds);
      const given = { ...conversion, dtype: dtype ?? this.#options.dtype, signal, onProgress };
      return new FilesBufferOnDevice<T>(new RankTensors(session, plan, this.#pg, given), names, framework, this.#pg);
    }
    const started = milliseconds();
    const watch = session.watch(signal, this.#headersMs);
    this.#headersMs = 0;
    const begins = { window: 0xffffffff, collectReady: early, whole: !early, keepsAll: true };
    const load = await session.begin(plan, begins, watch, signal);
    const meter = session.meter(load, onProgress);
    const whole = async (complete: Promise<void>): Promise<void> => {
      try {
        await session.unlessEnded(complete, signal);
        await meter?.stop();
        session.detach(load, started);
      } catch (error) {
        session.finish(load, started);
        meter?.rethrow();
        throw error;
      } finally {
        meter?.abandon();
        for (const fds of headerFds) this.#release(fds);
      }
    };
    const arrival = early ? new Arrival(load) : undefined;
    const buffer = new FilesBufferOnDevice<T>(new LoadedTensors(load, arrival), names, framework, this.#pg);
    if (arrival) void whole(arrival.run()).catch((error) => arrival.fail(error));
    else await held(whole(load.complete()));
    return buffer;
  }

  /**
   * For `for await (const [name, tensor] of loader)`: loads the files that were added, gives each tensor when its own
   * bytes are there, in the order of files and offsets, and closes the loader when the loop ends, by `break` or an
   * error as well. The caller disposes the tensors.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<[name: string, tensor: T], void, void> {
    try {
      await using buffer = await this.copyFilesToDevice({ early: true });
      yield* buffer;
    } finally {
      await this.close();
    }
  }

  /**
   * What a load of all that was added will take, together and by device: bytes of tensors with padding, as if nothing
   * were mapped; the most bytes of staging; tensors. For what one of several ranks reads see estimateShardedPlan().
   * NO_FILES, CLOSED.
   */
  estimate(): Estimate {
    takesAtMost(0, arguments, 'estimate');
    this.#planned();
    return structuredClone(this.#estimate);
  }

  /**
   * The same for what this rank loads, of the loader's dtype, by the buffer's shardedPlan(rules), where each tensor is
   * kept, or (streamedBytes) disposed before the next one; for asDict() and getSharded(), rules are names and
   * dimensions. A group of one has loaded all by then, and copies parts. With `broadcast`, a rank's share of what is
   * wanted by others, too, comes on top while it is read. Rejects with UNKNOWN_TENSOR, UNSUPPORTED_DTYPE,
   * INVALID_ARGUMENT, DEVICE_UNAVAILABLE, NO_FILES, CLOSED, TIMEOUT, STALLED, what a rule throws, or the reason of the
   * aborted signal.
   */
  async estimateShardedPlan(rules: ShardRules): Promise<StreamEstimate> {
    const session = this.#session;
    takesAtMost(1, arguments, 'estimateShardedPlan');
    const whole = this.estimate();
    const plan = this.#planned();
    const names = new TensorNames(plan, this.#shards!);
    const watch = session.watch();
    const ranges = await session.race(applyRules(rules, 'estimateShardedPlan', plan, names, this.#pg));
    const parts = await session.race(planOfParts(session, plan, [ranges], this.#options));
    const estimates = require('./stream-estimate.js') as typeof import('./stream-estimate.js');
    if (this.#pg.size === 1) return watch.during(estimates.withCopies(whole, parts));
    // What others read for this rank comes at once.
    const all = { window: parts.batchCount, inOrder: false };
    const streaming = this.#pg.broadcast ? all : { window: RANK_WINDOW, inOrder: true };
    return watch.during(estimates.ofStream(session, parts, streaming, watch));
  }

  /** Forgets the files that were added, and closes them. CLOSED. */
  reset(): void {
    this.#session.check();
    for (const fds of this.#headerFds) this.#release(fds);
    this.#headersMs = 0;
    this.#session.noteFiles([]);
    ++this.#resets;
    this.#shards = undefined;
    this.#inputs = undefined;
    this.#plan = undefined;
  }

  /**
   * Ends loads in progress, which reject with CLOSED; waits at most stallTimeoutMs until nothing is in flight, and
   * frees everything but buffers and tensors.
   */
  close(): Promise<void> {
    return this.#session.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #release(fds: NativeHeaderFdCache): void {
    this.#headerFds.delete(fds);
    this.#session.engines.releaseHeaderFds(fds);
  }

  #planned(): Plan {
    this.#session.check();
    if (!this.#plan) throw new FastSafetensorsError('NO_FILES', 'no files were added: call addFilenames() first');
    return this.#plan;
  }
}

/** Finds items by the names of their tensors. */
class TensorNames implements Names {
  static {
    keepExample(new TensorNames({} as Plan, {} as ShardSet));
  }

  readonly #plan: Plan;
  readonly #shards: ShardSet;

  constructor(plan: Plan, shards: ShardSet) {
    this.#plan = plan;
    this.#shards = shards;
  }

  find(name: string): number | undefined {
    const { metadata } = this.#shards;
    const file = metadata.length === 1 ? 0 : this.#shards.fileOf(name);
    return file === undefined ? undefined : this.#plan.itemOf(file, name);
  }

  unknown(name: string): Error {
    const isThere = this.#shards.fileOf(name) !== undefined;
    const left = isThere ? 'the option filter leaves out' : 'no file that was added has a';
    return unknownTensor(`${left} tensor "${name}"`, name, namesOf(this.#plan.inputs));
  }
}
