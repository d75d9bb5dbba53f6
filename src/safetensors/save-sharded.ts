import { readdir, rm, utimes } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { moveOver, targetOf } from '../base/atomic-write.js';
import * as check from '../base/checks.js';
import { FastSafetensorsError, ioError } from '../base/errors.js';
import { makeFolder } from '../base/make-folder.js';
import { removeDead, removedAtExit, TOUCH_MS, temporaryIn } from '../base/temporary.js';
import { clearInterval, setInterval } from '../base/timers.js';
import { checkMetadata, type SaveMetadata } from './save-header.js';
import { checkFolder, indexText, nameOfShard, replaceSet, writeSynced } from './save-set.js';
import type { Shard, ShardStyle } from './save-shard.js';
import { StoredModel } from './save-stored.js';
import { checkTensors, type Item, type SavePlace, type SaveTensor } from './save-tensors.js';
import { isStream, type SaveStream, SetWriter } from './save-writer.js';
import { replaceWithSums } from './sums.js';

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

/** saveSharded, also of tensors that are in files, and what it has written. */
export async function saveSet(
  tensors: SaveSource | SaveStream | StoredModel,
  folder: string | URL,
  options: SaveShardedOptions = {},
): Promise<SavedSet> {
  const path = check.pathOf(folder, 'saveSharded');
  const checked = check.checkOptions(options, CHECKS);
  const { fsync = true, signal, checksum } = checked;
  const metadata = checkMetadata(checked.metadata, 'saveSharded');
  const place: SavePlace = { by: 'saveSharded', path };
  const given = isStream(tensors) || tensors instanceof StoredModel ? tensors : checkTensors(tensors, place);
  signal?.throwIfAborted();
  await makeFolder(path);
  let thrown: unknown;
  try {
    return await inOwnFolder(path, false, async (own) => {
      const replaced = await checkFolder(path);
      const writer = new SetWriter(own, { place, metadata, replaced, fsync, checksum }, checked);
      try {
        await writer.write(given);
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
  tensors: SaveStream | StoredModel | readonly Item[],
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
    return await inOwnFolder(dirname(target.path), true, async (own) => {
      const writer = new SetWriter(own, style, { maxShardBytes: Number.MAX_SAFE_INTEGER });
      try {
        await writer.write(tensors);
        const [shard] = await writer.finish();
        await moveOver(shard!.path, path, (to, put) => replaceWithSums([path, to], put));
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

/**
 * A folder for temporary files in the one that is written to, for as long as `use` takes. Unless that is `shared`, as
 * by calls that write one file each, IO_ERROR where another process, or another call, is writing to it.
 */
async function inOwnFolder<T>(folder: string, shared: boolean, use: (own: string) => Promise<T>): Promise<T> {
  const own = temporaryIn(folder);
  const release = removedAtExit(own);
  const touch = setInterval(() => utimes(own, new Date(), new Date()).catch(() => undefined), TOUCH_MS).unref();
  try {
    await makeFolder(own);
    const others = (await removeDead(folder)).filter((name) => name !== basename(own));
    const busy = shared ? undefined : await firstFolder(folder, others);
    if (busy) {
      const message = `saveSharded: another model is being written to ${folder} (see ${busy}); wait for its end`;
      throw new FastSafetensorsError('IO_ERROR', message, { path: folder });
    }
    return await use(own);
  } finally {
    clearInterval(touch);
    await rm(own, { recursive: true, force: true });
    release();
  }
}

/** The first of the names that is a folder: single files are of saveFile. */
async function firstFolder(folder: string, names: readonly string[]): Promise<string | undefined> {
  if (names.length === 0) return undefined;
  const entries = await readdir(folder, { withFileTypes: true });
  return entries.find((entry) => entry.isDirectory() && names.includes(entry.name))?.name;
}
