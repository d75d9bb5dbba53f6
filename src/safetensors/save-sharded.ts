import { readdir, rm, utimes } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { moveOver, targetOf } from '../base/atomic-write.js';
import * as check from '../base/checks.js';
import { FastSafetensorsError, ioError } from '../base/errors.js';
import { makeFolder } from '../base/make-folder.js';
import { removeDead, TOUCH_MS, temporaryIn } from '../base/temporary.js';
import { clearInterval, setInterval } from '../base/timers.js';
import { unlessAborted } from '../base/waiting.js';
import { checkMetadata, type SaveMetadata } from './save-header.js';
import { checkFolder, indexText, nameOfShard, replaceSet, writeSynced } from './save-set.js';
import { Shard, type ShardStyle } from './save-shard.js';
import {
  byLayout,
  checkTensor,
  checkTensors,
  type Item,
  type SavePlace,
  type SaveTensor,
  shown,
} from './save-tensors.js';
import { removeSums } from './sums.js';

/** Options of saveSharded. */
export interface SaveShardedOptions {
  /** Bytes of tensors in a file, but for a larger tensor, which has one of its own. Default: 5 GB. */
  readonly maxShardBytes?: number;
  /** Writes at a time. Default: 4. */
  readonly parallel?: number;
  /** Whether each header gets digests of its tensors, which loaders compare them with. Default: false. */
  readonly checksum?: boolean;
  /** Whether files are synced, so that the set lasts through a power failure. Default: true. */
  readonly fsync?: boolean;
  /** Texts by name, written as each header's `__metadata__`, such as `{ format: 'pt' }`; default: none. */
  readonly metadata?: SaveMetadata;
  /** Ends it, with the signal's reason, until the files get their names; the folder stays as it was. */
  readonly signal?: AbortSignal;
}

/** What holds for one file, too. */
export type SaveStreamOptions = Pick<SaveShardedOptions, 'fsync' | 'metadata' | 'checksum'>;

/** What saveSharded takes: a list, tensors by names, or a stream, such as a loader. */
export type SaveSource =
  | Iterable<SaveTensor>
  | Readonly<Record<string, SaveTensor>>
  | ReadonlyMap<string, SaveTensor>
  | AsyncIterable<readonly [name: string, tensor: SaveTensor] | SaveTensor>;

/** What was written. */
export interface SavedSet {
  readonly files: string[];
  readonly tensors: number;
  readonly bytes: number;
}

/** As Hugging Face's save_pretrained(). */
const DEFAULT_SHARD_BYTES = 5e9;
/** Tensors that are written at a time have no more bytes, but for a larger one. */
const MAX_BYTES_IN_FLIGHT = 64 * 1024 * 1024;

const CHECKS = {
  maxShardBytes: check.integer(1),
  parallel: check.integer(1, 64),
  checksum: check.boolean,
  fsync: check.boolean,
  metadata: () => {},
  signal: check.methods('an AbortSignal', 'throwIfAborted', 'addEventListener'),
};

/**
 * Writes a model as files of limited size and their index, named as Hugging Face does
 * (`model-00001-of-00002.safetensors`, `model.safetensors.index.json`), or as `model.safetensors` alone where one is
 * enough. Atomic as a set: the folder, made where it is not there, holds the old model or the new one, at each moment
 * and after a crash, or is refused as incomplete. The files that the new set replaces are removed; INVALID_ARGUMENT
 * where the folder has other weights.
 *
 * A list, record or Map is looked at whole first, and its tensors stay the caller's. Of an async iterable, such as a
 * loader, tensors are written as they come, and saveSharded disposes each one as soon as it is written: of a model of
 * any size, only what is being written is in memory.
 *
 * Rejects as saveFile, with what the stream throws, or with the reason of the signal; then the folder is as it was.
 */
export async function saveSharded(
  tensors: SaveSource,
  folder: string | URL,
  options: SaveShardedOptions = {},
): Promise<void> {
  check.takesAtMost(3, arguments, 'saveSharded');
  await saveSet(tensors, folder, options);
}

/** saveSharded, and what it has written. */
export async function saveSet(
  tensors: SaveSource,
  folder: string | URL,
  options: SaveShardedOptions = {},
): Promise<SavedSet> {
  const path = check.pathOf(folder, 'saveSharded');
  const checked = check.checkOptions(options, CHECKS);
  const { fsync = true, signal, checksum } = checked;
  const metadata = checkMetadata(checked.metadata, 'saveSharded');
  const place: SavePlace = { by: 'saveSharded', path };
  const stream = isStream(tensors) ? tensors : undefined;
  const items = stream ? [] : checkTensors(tensors, place);
  signal?.throwIfAborted();
  await makeFolder(path);
  let thrown: unknown;
  try {
    return await inOwnFolder(path, async (own) => {
      const replaced = await checkFolder(path);
      const writer = new SetWriter(own, { place, metadata, replaced, fsync, checksum }, checked);
      try {
        if (stream) await writer.stream(stream);
        else await writer.list(items);
        return await commit(path, own, await writer.finish(), { fsync, replaced });
      } finally {
        thrown = writer.thrown;
        await writer.close();
      }
    });
  } catch (error) {
    throw errorOf(error, thrown, path);
  }
}

/**
 * Writes a stream, or a list in the order of the format's writers, as one file, as saveSharded writes those of a set,
 * in place of what `file` leads to; see writeAtomically().
 */
export async function saveOne(
  tensors: AsyncIterable<readonly [string, SaveTensor]> | readonly Item[],
  file: string | URL,
  { fsync = true, metadata, checksum }: SaveStreamOptions = {},
  by: SavePlace['by'] = 'saveSharded',
): Promise<SavedSet> {
  const path = check.pathOf(file, 'saveOne');
  const place: SavePlace = { by, path };
  let thrown: unknown;
  try {
    const target = await targetOf(path);
    const style = { place, metadata: checkMetadata(metadata, 'saveOne'), replaced: target.replaced, fsync, checksum };
    return await inOwnFolder(dirname(target.path), async (own) => {
      const writer = new SetWriter(own, style, { maxShardBytes: Number.MAX_SAFE_INTEGER });
      try {
        if (Symbol.asyncIterator in tensors) await writer.stream(tensors);
        else await writer.list(tensors);
        const [shard] = await writer.finish();
        await removeSums(path, target.path);
        await moveOver(shard!.path, path);
        return { files: [path], tensors: shard!.entries.length, bytes: shard!.dataBytes };
      } finally {
        thrown = writer.thrown;
        await writer.close();
      }
    });
  } catch (error) {
    throw errorOf(error, thrown, path);
  }
}

/** An error of the system becomes IO_ERROR, but for what the stream has thrown: that is about other files. */
function errorOf(error: unknown, thrown: unknown, path: string): unknown {
  if (error === thrown || (error as NodeJS.ErrnoException | undefined)?.syscall === undefined) return error;
  return ioError('write', path, error);
}

/** Puts finished files, which are in `own`, in place of what the folder has. */
async function commit(
  folder: string,
  own: string,
  shards: readonly Shard[],
  { fsync, replaced }: Pick<ShardStyle, 'fsync' | 'replaced'>,
): Promise<SavedSet> {
  const files = shards.map((shard, i) => ({ temporary: shard.path, name: nameOfShard(i, shards.length) }));
  const fileOf = new Map<string, string>();
  for (const [i, { entries }] of shards.entries()) for (const { name } of entries) fileOf.set(name, files[i]!.name);
  const bytes = shards.reduce((sum, { dataBytes }) => sum + dataBytes, 0);
  const index = join(own, 'index.json');
  await writeSynced(index, indexText(bytes, fileOf), fsync, replaced);
  await replaceSet(folder, { files, index, fsync });
  return { files: files.map(({ name }) => join(folder, name)), tensors: fileOf.size, bytes };
}

/** Of a stream's item, which may be anything. */
function tensorOf(given: unknown): unknown {
  return Array.isArray(given) ? given[1] : given;
}

function dispose(tensor: unknown): void {
  (tensor as { dispose?(): void } | null | undefined)?.dispose?.();
}

function isStream(tensors: SaveSource): tensors is AsyncIterable<readonly [string, SaveTensor] | SaveTensor> {
  return typeof tensors === 'object' && tensors !== null && Symbol.asyncIterator in tensors;
}

/**
 * A folder for temporary files in the one that is written to, for as long as `use` takes. IO_ERROR where another
 * process, or another call, is writing to it.
 */
async function inOwnFolder<T>(folder: string, use: (own: string) => Promise<T>): Promise<T> {
  const own = temporaryIn(folder);
  await makeFolder(own);
  const touch = setInterval(() => utimes(own, new Date(), new Date()).catch(() => undefined), TOUCH_MS).unref();
  try {
    const others = (await removeDead(folder)).filter((name) => name !== basename(own));
    const busy = await firstFolder(folder, others);
    if (busy) {
      const message = `saveSharded: another model is being written to ${folder} (see ${busy}); wait for its end`;
      throw new FastSafetensorsError('IO_ERROR', message, { path: folder });
    }
    return await use(own);
  } finally {
    clearInterval(touch);
    await rm(own, { recursive: true, force: true });
  }
}

/** The first of the names that is a folder: single files are of saveFile. */
async function firstFolder(folder: string, names: readonly string[]): Promise<string | undefined> {
  if (names.length === 0) return undefined;
  const entries = await readdir(folder, { withFileTypes: true });
  return entries.find((entry) => entry.isDirectory() && names.includes(entry.name))?.name;
}

/** Cuts tensors into files, and writes several at a time. */
class SetWriter {
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
  #failed: { error: unknown } | undefined;
  /** What the stream has thrown. */
  thrown: unknown;

  constructor(folder: string, style: ShardStyle, options: SaveShardedOptions) {
    this.#folder = folder;
    this.#style = style;
    this.#maxShardBytes = options.maxShardBytes ?? DEFAULT_SHARD_BYTES;
    this.#parallel = options.parallel ?? 4;
    this.#signal = options.signal;
  }

  /** Cut as Hugging Face does: in the order given, each file then in the order of the format's writers. */
  async list(items: readonly Item[]): Promise<void> {
    let current: Item[] | undefined;
    let bytes = 0;
    const files: Item[][] = [];
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
      const shard = await this.#create(file.sort(byLayout));
      for (const item of file) await this.#add(shard, item);
      await this.#complete(shard);
    }
  }

  /** In the order in which they come; what is no multiple of 8 bytes at the end of its file. */
  async stream(tensors: AsyncIterable<readonly [string, SaveTensor] | SaveTensor>): Promise<void> {
    const names = new Set<string>();
    let current: Shard | undefined;
    const { place } = this.#style;
    for await (const given of this.#untilAborted(tensors)) {
      const tensor = tensorOf(given);
      const name = Array.isArray(given) ? given[0] : (given as SaveTensor | null)?.name;
      try {
        const item = checkTensor(name, tensor, place);
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

  async #create(planned?: readonly Item[]): Promise<Shard> {
    const shard = await Shard.create(join(this.#folder, `${this.#shards.length}.safetensors`), this.#style, planned);
    this.#shards.push(shard);
    this.#writing.set(shard, []);
    return shard;
  }

  /** Begins to write a tensor, when there is room for it. What comes from a stream is disposed then. */
  async #add(shard: Shard, item: Item, streamed?: unknown): Promise<void> {
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

  /** Ends a file, when its tensors are written. */
  async #complete(shard: Shard): Promise<void> {
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
