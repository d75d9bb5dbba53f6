/** Cuts tensors into files, and writes several at a time. */
import { join } from 'node:path';
import { FastSafetensorsError } from '../base/errors.js';
import { unlessAborted } from '../base/waiting.js';
import { ALIGNMENT, Shard, type ShardStyle } from './save-shard.js';
import { StoredCopies, StoredModel, StoredTensor } from './save-stored.js';
import { byLayout, checkTensor, type Item, type SaveTensor, shown } from './save-tensors.js';

/** As Hugging Face's save_pretrained(). */
const DEFAULT_SHARD_BYTES = 5e9;
/** Tensors that are written at a time have no more bytes, but for a larger one. */
const MAX_BYTES_IN_FLIGHT = 64 * 1024 * 1024;

/** Those of saveSharded that say how files are cut and written. */
export interface SetOptions {
  readonly maxShardBytes?: number;
  readonly parallel?: number;
  readonly signal?: AbortSignal;
}

/** A stream, some of whose tensors may be in files. */
export type SaveStream = AsyncIterable<readonly [name: string, tensor: SaveTensor] | SaveTensor | StoredTensor>;

/** One for each set. What is given comes to the disk in files of `folder`, in the order of their numbers. */
export class SetWriter {
  readonly #folder: string;
  readonly #style: ShardStyle;
  readonly #maxShardBytes: number;
  readonly #parallel: number;
  readonly #signal: AbortSignal | undefined;
  readonly #shards: Shard[] = [];
  /** What of each shard is being written. */
  readonly #writing = new Map<Shard, Promise<void>[]>();
  readonly #inFlight = new Set<Promise<void>>();
  #bytesInFlight = 0;
  #batch: { readonly shard: Shard; readonly copies: StoredCopies } | undefined;
  #failed: { error: unknown } | undefined;
  /** What the stream has thrown. */
  thrown: unknown;

  constructor(folder: string, style: ShardStyle, options: SetOptions) {
    this.#folder = folder;
    this.#style = style;
    this.#maxShardBytes = options.maxShardBytes ?? DEFAULT_SHARD_BYTES;
    this.#parallel = options.parallel ?? 4;
    this.#signal = options.signal;
  }

  /** Begins to write all of them; a stream is taken to its end. */
  write(tensors: SaveStream | StoredModel | readonly Item[]): Promise<void> {
    if (isStream(tensors)) return this.#stream(tensors);
    return tensors instanceof StoredModel ? this.#stored(tensors) : this.#list(tensors);
  }

  /** Cut as Hugging Face does: in the order given, each file then in the order of the format's writers. */
  #list(items: readonly Item[]): Promise<void> {
    return this.#planned(items, (file) => file.sort(byLayout));
  }

  /** In the order of their files, so that much lies together; what is no multiple of 8 bytes at the end of its file. */
  #stored({ tensors }: StoredModel): Promise<void> {
    return this.#planned(tensors, (file) => [
      ...file.filter(isAligned),
      ...file.filter((tensor) => !isAligned(tensor)).sort(byLayout),
    ]);
  }

  async #planned<T extends Item | StoredTensor>(items: readonly T[], inOrder: (file: T[]) => T[]): Promise<void> {
    let current: T[] | undefined;
    let bytes = 0;
    const files: T[][] = [];
    for (const item of items) {
      if (item.byteLength > this.#maxShardBytes) {
        files.push([item]);
        continue;
      }
      if (!current || bytes + item.byteLength > this.#maxShardBytes) {
        current = [];
        files.push(current);
        bytes = 0;
      }
      current.push(item);
      bytes += item.byteLength;
    }
    for (const file of files.length > 0 ? files : [[]]) {
      const ordered = inOrder(file);
      const shard = await this.#create(ordered);
      for (const item of ordered) await this.#add(shard, item);
      await this.#complete(shard);
    }
  }

  /** In the order in which they come; what is no multiple of 8 bytes at the end of its file. */
  async #stream(tensors: SaveStream): Promise<void> {
    const names = new Set<string>();
    let current: Shard | undefined;
    const { place } = this.#style;
    for await (const given of this.#untilAborted(tensors)) {
      const tensor = tensorOf(given);
      const name = Array.isArray(given) ? given[0] : (given as SaveTensor | null)?.name;
      try {
        const item = tensor instanceof StoredTensor ? tensor : checkTensor(name, tensor, place);
        if (names.has(item.name)) {
          const message = `saveSharded: tensor ${shown(item.name)} is given twice`;
          throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { path: place.path, tensor: item.name });
        }
        names.add(item.name);
        if (item.byteLength > this.#maxShardBytes) {
          const alone = await this.#create();
          await this.#add(alone, item, tensor);
          await this.#complete(alone);
          continue;
        }
        if (current && current.dataBytes + item.byteLength > this.#maxShardBytes) {
          await this.#complete(current);
          current = undefined;
        }
        current ??= await this.#create();
        await this.#add(current, item, tensor);
      } catch (error) {
        dispose(tensor);
        throw error;
      }
    }
    current ??= this.#shards.length === 0 ? await this.#create() : undefined;
    if (current) await this.#complete(current);
  }

  /** The files, when all is written. */
  async finish(): Promise<readonly Shard[]> {
    await Promise.all(this.#inFlight);
    this.#check();
    return this.#shards;
  }

  /** Waits for what is being written. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#inFlight);
    for (const shard of this.#writing.keys()) await shard.close();
  }

  #check(): void {
    if (this.#failed) throw this.#failed.error;
    this.#signal?.throwIfAborted();
  }

  async #create(planned?: readonly (Item | StoredTensor)[]): Promise<Shard> {
    const shard = await Shard.create(join(this.#folder, `${this.#shards.length}.safetensors`), this.#style, planned);
    this.#shards.push(shard);
    this.#writing.set(shard, []);
    return shard;
  }

  /** Begins to write a tensor, when there is room for it. What comes from a stream is disposed then. */
  async #add(shard: Shard, item: Item | StoredTensor, streamed?: unknown): Promise<void> {
    if (item instanceof StoredTensor) return this.#addStored(shard, item);
    const isFull = (): boolean =>
      this.#inFlight.size >= this.#parallel ||
      (this.#inFlight.size > 0 && this.#bytesInFlight + item.byteLength > MAX_BYTES_IN_FLIGHT);
    while (isFull()) await Promise.race(this.#inFlight);
    this.#check();
    this.#bytesInFlight += item.byteLength;
    const written = shard.add(item).finally(() => {
      this.#bytesInFlight -= item.byteLength;
      dispose(streamed);
    });
    this.#writing.get(shard)!.push(this.#start(written));
  }

  /** Gives a tensor its place, and begins to copy what there is enough of. */
  async #addStored(shard: Shard, tensor: StoredTensor): Promise<void> {
    const place = shard.placeStored(tensor);
    if (place === undefined) return;
    for (let done = 0; done < tensor.byteLength; ) {
      const batch = this.#batch;
      if (batch && (batch.shard !== shard || !batch.copies.mayTake(tensor))) {
        await this.#copyBatch();
        continue;
      }
      this.#batch ??= { shard, copies: new StoredCopies(tensor) };
      done += this.#batch.copies.take(tensor, done, place + done);
    }
  }

  /** Begins to copy what has been collected. */
  async #copyBatch(): Promise<void> {
    const batch = this.#batch;
    if (!batch) return;
    this.#batch = undefined;
    while (this.#inFlight.size >= this.#parallel) await Promise.race(this.#inFlight);
    this.#check();
    this.#writing.get(batch.shard)!.push(this.#start(batch.shard.copy(batch.copies)));
  }

  /** Ends a file, when its tensors are written. */
  async #complete(shard: Shard): Promise<void> {
    if (this.#batch?.shard === shard) await this.#copyBatch();
    const parts = this.#writing.get(shard)!;
    const end = async (): Promise<void> => {
      await Promise.all(parts);
      if (this.#failed) return;
      await shard.finish();
      await shard.close();
      this.#writing.delete(shard);
    };
    this.#start(end());
  }

  /** Counts work in flight; the first error of all is kept. The promise does not reject. */
  #start(work: Promise<void>): Promise<void> {
    const counted = work
      .catch((error) => {
        this.#failed ??= { error };
      })
      .then(() => void this.#inFlight.delete(counted));
    this.#inFlight.add(counted);
    return counted;
  }

  /** The tensors of a stream; an abort ends it at once, also while the next tensor does not come. */
  async *#untilAborted<T>(tensors: AsyncIterable<T>): AsyncGenerator<T, void, void> {
    const iterator = tensors[Symbol.asyncIterator]();
    let pending = false;
    let ended = false;
    try {
      for (;;) {
        pending = true;
        const next = iterator.next();
        const late = (): void =>
          void next.then(
            ({ value }) => dispose(tensorOf(value)),
            () => undefined,
          );
        const { done, value } = await unlessAborted(next, this.#signal ? [this.#signal] : [], late);
        pending = false;
        ended = done === true;
        if (ended) return;
        yield value;
      }
    } catch (error) {
      this.thrown = error;
      throw error;
    } finally {
      // While the next tensor does not come, return() does not end either.
      const end = ended ? undefined : iterator.return?.();
      if (pending) end?.then(undefined, () => undefined);
      else await end;
    }
  }
}

export function isStream(tensors: object): tensors is SaveStream {
  return typeof tensors === 'object' && tensors !== null && Symbol.asyncIterator in tensors;
}

/** Of a stream's item, which may be anything. */
function tensorOf(given: unknown): unknown {
  return Array.isArray(given) ? given[1] : given;
}

function dispose(tensor: unknown): void {
  (tensor as { dispose?(): void } | null | undefined)?.dispose?.();
}

function isAligned({ byteLength }: { readonly byteLength: number }): boolean {
  return byteLength % ALIGNMENT === 0;
}
