/** Which .safetensors files the option `files` means. */
import { readdir, realpath, stat } from 'node:fs/promises';
import { dirname, join, sep } from 'node:path';
import * as check from '../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError, ioError } from '../base/errors.js';
import { readRegularFile, unsafePath } from '../base/regular-file.js';
import { native, settled } from '../native/addon.js';
import type { NativeShardIndex } from '../native/packed.js';
import { textAt } from './metadata.js';

/**
 * One .safetensors file, several, a folder or an index file (`*.json`). A folder means what its
 * model.safetensors.index.json names, or without one all its *.safetensors in the order of their names.
 */
export type Files = string | readonly string[];

const INDEX_NAME = 'model.safetensors.index.json';
const MAX_INDEX_BYTES = 100_000_000;

/** An index whose shards all lie inside its folder; whether the shards agree with it is checked by `joinShards`. */
export interface ShardIndex {
  readonly path: string;
  readonly packed: NativeShardIndex;
  /** The path of each shard, by its number in `packed`. */
  readonly shards: readonly string[];
  /** MISSING_SHARD of the first shard that does not exist, for the caller to throw. */
  readonly missing: FastSafetensorsError | undefined;
}

export interface ResolvedFiles {
  /** In the order in which they are loaded. Not all need exist. */
  readonly paths: readonly string[];
  readonly index: ShardIndex | null;
}

/** NO_FILES, INVALID_INDEX, UNSAFE_SHARD_PATH, IO_ERROR or INVALID_ARGUMENT. */
export async function resolveFiles(files: Files): Promise<ResolvedFiles> {
  if (typeof files === 'string') {
    check.path(files, 'files');
    // A path that does not exist is reported when its header is read.
    const isFolder = await stat(files).then(
      (info) => info.isDirectory(),
      () => false,
    );
    if (isFolder) return resolveFolder(files);
    return files.endsWith('.json') ? resolveIndex(files) : { paths: [files], index: null };
  }
  if (!Array.isArray(files)) {
    throw new InvalidArgumentError(`files: expected a path or an array of paths, found ${typeof files}`);
  }
  if (files.length === 0)
    throw new FastSafetensorsError('NO_FILES', 'files: the list is empty, expected at least one path');
  for (const path of files) check.path(path, 'files');
  if (files.length === 1) return resolveFiles(files[0] as string);
  // With an index among the files, nobody could tell which tensors come from where.
  const index = (files as string[]).find((path) => path.endsWith('.json'));
  if (index !== undefined) {
    throw new InvalidArgumentError(`files: "${index}" is an index; pass it alone, it names its shards itself`);
  }
  return { paths: [...files], index: null };
}

async function resolveFolder(folder: string): Promise<ResolvedFiles> {
  const names = await readdir(folder).catch((cause) => {
    throw ioError('list', folder, cause);
  });
  if (names.includes(INDEX_NAME)) return resolveIndex(join(folder, INDEX_NAME));
  const shards = names.filter((name) => name.endsWith('.safetensors')).sort();
  if (shards.length === 0) {
    const message = `${folder} has neither ${INDEX_NAME} nor any *.safetensors`;
    throw new FastSafetensorsError('NO_FILES', message, { path: folder });
  }
  return { paths: shards.map((name) => join(folder, name)), index: null };
}

async function resolveIndex(path: string): Promise<ResolvedFiles> {
  const info = await stat(path).catch((cause) => {
    throw ioError('read', path, cause);
  });
  if (info.size > MAX_INDEX_BYTES) {
    const message = `${path}: expected at most ${MAX_INDEX_BYTES} bytes, found ${info.size}`;
    throw new FastSafetensorsError('INVALID_INDEX', message, { path });
  }
  const bytes = await readRegularFile(path, MAX_INDEX_BYTES).catch((cause) => {
    throw ioError('read', path, cause);
  });
  const packed = await settled(native().parseShardIndex(bytes, path));
  if (packed.shardOf.length === 0)
    throw new FastSafetensorsError('NO_FILES', `${path}: its weight_map names no tensor`, { path });
  const folder = dirname(path);
  const realFolder = await realpath(folder);
  const shards: string[] = [];
  let missing: FastSafetensorsError | undefined;
  for (let shard = 0; shard < packed.shardEnds.length; ++shard) {
    const name = textAt(packed.shards, packed.shardEnds, shard);
    const absent = await checkShard(path, realFolder, folder, name);
    missing ??= absent;
    shards.push(join(folder, name));
  }
  // One file may be spelled in several ways.
  return { paths: [...new Set(shards)].sort(), index: { path, packed, shards, missing } };
}

/**
 * UNSAFE_SHARD_PATH unless a shard's name, and the file that it is after every link, lies inside the index's folder.
 * Returns MISSING_SHARD for a file that does not exist.
 */
async function checkShard(
  index: string,
  realFolder: string,
  folder: string,
  name: string,
): Promise<FastSafetensorsError | undefined> {
  const unsafe = (why: string) =>
    new FastSafetensorsError(
      'UNSAFE_SHARD_PATH',
      `${index} names the shard ${JSON.stringify(name)}: ${why}; a shard is a file inside the index's folder`,
      { path: index },
    );
  let decoded = name;
  try {
    decoded = decodeURIComponent(name);
  } catch {
    // A lone percent sign is an ordinary character in a file's name.
  }
  for (const text of [name, decoded]) {
    const why = unsafePath(text);
    if (why) throw unsafe(why);
  }
  const path = join(folder, name);
  let real: string;
  try {
    real = await realpath(path);
  } catch (cause) {
    if (!['ENOENT', 'ENOTDIR'].includes((cause as NodeJS.ErrnoException).code!)) throw ioError('read', path, cause);
    const message = `${index} names the shard "${name}", but ${path} is not there`;
    return new FastSafetensorsError('MISSING_SHARD', message, { path, cause });
  }
  if (!real.startsWith(realFolder.endsWith(sep) ? realFolder : realFolder + sep))
    throw unsafe(`it is a link to ${real}`);
  return undefined;
}
