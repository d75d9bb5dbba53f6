import { readdir, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { readRegularFile } from '../base/regular-file.js';
import { milliseconds, nextTurn } from '../base/timers.js';
import { native, readHeader, settled } from '../native/addon.js';
import type { NativeHeaderFdCache } from '../native/core.js';
import type { NativeShardIndex } from '../native/packed.js';
import { SafeTensorsMetadata, textAt } from './metadata.js';

/** One file, several, a folder (its model.safetensors.index.json, else its *.safetensors), or an index file. */
export type Files = string | readonly string[];

const INDEX_NAME = 'model.safetensors.index.json';
export const MAX_INDEX_BYTES = 100_000_000;
/** Headers read at a time: each is one round trip or two on a distributed file system. */
const HEADERS_AT_A_TIME = 32;
/** Tensors compared with the index in one turn of the event loop: about a millisecond's worth. */
const TENSORS_A_TURN = 4096;

interface Index {
  readonly path: string;
  readonly packed: NativeShardIndex;
  /** Path by number of a shard. */
  readonly shards: readonly string[];
}

interface Resolved {
  readonly paths: readonly string[];
  readonly index: Index | null;
  /** total_size of the index's metadata, as it says; nothing relies on it. */
  readonly totalSize: number | undefined;
}

/** The paths behind `files`, in order. NO_FILES, INVALID_INDEX, MISSING_SHARD, UNSAFE_SHARD_PATH, IO_ERROR, INVALID_ARGUMENT. */
export async function resolveFiles(files: Files): Promise<Resolved> {
  const plain = (paths: readonly string[]): Resolved => ({ paths, index: null, totalSize: undefined });
  if (typeof files === 'string') {
    checkPath(files);
    const info = await stat(files).catch((cause) => {
      throw cannot('read', files, cause);
    });
    if (info.isDirectory()) return resolveFolder(files);
    return files.endsWith('.json') ? resolveIndex(files) : plain([files]);
  }
  if (!Array.isArray(files)) {
    throw new InvalidArgumentError(`files: expected a path or an array of paths, found ${typeof files}`);
  }
  if (files.length === 0)
    throw new FastSafetensorsError('NO_FILES', 'files: the list is empty, expected at least one path');
  for (const path of files) checkPath(path);
  if (files.length === 1) return resolveFiles(files[0] as string);
  const resolved: string[] = [];
  for (const path of files as string[]) {
    // A folder or an index among files would hide which tensors come from where.
    if (path.endsWith('.json')) {
      throw new InvalidArgumentError(`files: "${path}" is an index; pass it alone, it names its shards itself`);
    }
    resolved.push(path);
  }
  return plain(resolved);
}

function checkPath(path: unknown): void {
  if (typeof path !== 'string' || path === '' || path.includes('\0')) {
    throw new InvalidArgumentError(
      `files: expected a path, found ${typeof path === 'string' ? JSON.stringify(path) : typeof path}`,
    );
  }
}

async function resolveFolder(folder: string): Promise<Resolved> {
  const names = await readdir(folder).catch((cause) => {
    throw cannot('list', folder, cause);
  });
  if (names.includes(INDEX_NAME)) return resolveIndex(join(folder, INDEX_NAME));
  const shards = names.filter((name) => name.endsWith('.safetensors')).sort();
  if (shards.length === 0) {
    throw new FastSafetensorsError('NO_FILES', `${folder} has neither ${INDEX_NAME} nor any *.safetensors`, {
      path: folder,
    });
  }
  return { paths: shards.map((name) => join(folder, name)), index: null, totalSize: undefined };
}

async function resolveIndex(path: string): Promise<Resolved> {
  const info = await stat(path).catch((cause) => {
    throw cannot('read', path, cause);
  });
  if (info.size > MAX_INDEX_BYTES) {
    throw new FastSafetensorsError(
      'INVALID_INDEX',
      `${path}: expected at most ${MAX_INDEX_BYTES} bytes, found ${info.size}`,
      { path },
    );
  }
  const bytes = await readRegularFile(path, MAX_INDEX_BYTES).catch((cause) => {
    throw cannot('read', path, cause);
  });
  const packed = await settled(native().parseShardIndex(bytes, path));
  if (packed.shardOf.length === 0)
    throw new FastSafetensorsError('NO_FILES', `${path}: its weight_map names no tensor`, { path });
  const folder = dirname(path);
  const realFolder = await realpath(folder);
  const shards: string[] = [];
  for (let shard = 0; shard < packed.shardEnds.length; ++shard)
    shards.push(await resolveShard(path, realFolder, folder, textAt(packed.shards, packed.shardEnds, shard)));
  return {
    paths: [...new Set(shards)].sort(), // one file may be spelled in several ways
    index: { path, packed, shards },
    totalSize: packed.totalSize < 0 ? undefined : packed.totalSize,
  };
}

/** A shard is a file inside the index's folder, by name and after every link. */
async function resolveShard(index: string, realFolder: string, folder: string, name: string): Promise<string> {
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
    if (text === '' || text === '.') throw unsafe('it is empty');
    if (text.includes('\0')) throw unsafe('it contains a NUL');
    if (text.includes('\\')) throw unsafe('it contains a backslash');
    if (text.startsWith('/')) throw unsafe('it is absolute');
    if (/^[a-zA-Z][a-zA-Z0-9+.-]*:/.test(text)) throw unsafe('it is a URL or names a drive');
    if (text.split('/').includes('..')) throw unsafe('it leaves the folder');
  }
  const path = join(folder, name);
  const real = await realpath(path).catch((cause) => {
    if (cause.code !== 'ENOENT' && cause.code !== 'ENOTDIR') throw cannot('read', path, cause);
    throw new FastSafetensorsError('MISSING_SHARD', `${index} names the shard "${name}", but ${path} is not there`, {
      path,
      cause,
    });
  });
  if (!real.startsWith(realFolder.endsWith(sep) ? realFolder : realFolder + sep))
    throw unsafe(`it is a link to ${real}`);
  return path;
}

/** Several checked headers, and which file has which tensor. */
export interface ShardSet {
  readonly metadata: readonly SafeTensorsMetadata[];
  /** Which file has a tensor: its number, or undefined. */
  fileOf(tensor: string): number | undefined;
  readonly totalSize: number | undefined;
}

/**
 * Reads and checks every header, several at a time. On return each tensor is in exactly one file and, where there is an index, exactly where it says. The header's
 * codes, DUPLICATE_TENSOR, INVALID_INDEX and those of resolveFiles. `byName`: the headers will be asked for tensors by their names. `fdCache`: keeps the files open
 * for their data.
 */
export async function readShards(
  files: Files,
  {
    allowTrailingBytes,
    byName = true,
    fdCache,
  }: { allowTrailingBytes?: boolean; byName?: boolean; fdCache?: NativeHeaderFdCache },
  signal?: AbortSignal,
): Promise<ShardSet> {
  const { paths, index, totalSize } = await resolveFiles(files);
  const metadata = new Array<SafeTensorsMetadata>(paths.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < paths.length) {
      signal?.throwIfAborted();
      const file = next++;
      const path = paths[file]!;
      const header = await readHeader(path, { allowTrailingBytes, fdCache });
      metadata[file] = await SafeTensorsMetadata.fromNative(header, path, { byName });
    }
  };
  await Promise.all(Array.from({ length: Math.min(HEADERS_AT_A_TIME, paths.length) }, worker));

  if (metadata.length === 1 && !index)
    return { metadata, fileOf: (name) => (metadata[0]!.has(name) ? 0 : undefined), totalSize };
  const fileOf = new Map<string, number>();
  let turn = milliseconds();
  for (let file = 0; file < metadata.length; ++file) {
    const header = metadata[file]!;
    for (let i = 0; i < header.tensorCount; ++i) {
      const name = header.nameAt(i);
      const other = fileOf.get(name);
      if (other !== undefined) {
        throw new FastSafetensorsError(
          'DUPLICATE_TENSOR',
          `tensor "${name}" is in ${metadata[other]!.path} and in ${header.path}; load them separately or remove one`,
          { path: header.path, tensor: name },
        );
      }
      fileOf.set(name, file);
      if ((i & 1023) === 1023 && milliseconds() - turn > 4) {
        await nextTurn();
        turn = milliseconds();
      }
    }
  }
  if (index) await checkIndex(index, metadata, fileOf);
  return { metadata, fileOf: (name) => fileOf.get(name), totalSize };
}

async function checkIndex(
  { path, packed, shards }: Index,
  metadata: readonly SafeTensorsMetadata[],
  fileOf: ReadonlyMap<string, number>,
): Promise<void> {
  const wrong = (tensor: string, what: string) =>
    new FastSafetensorsError('INVALID_INDEX', `${path}: tensor "${tensor}" ${what}`, { path, tensor });
  const { names, nameEnds, shardOf } = packed;
  for (let i = 0; i < shardOf.length; ++i) {
    const tensor = textAt(names, nameEnds, i);
    const expected = shards[shardOf[i]!]!;
    const file = fileOf.get(tensor);
    if (file === undefined) throw wrong(tensor, `should be in ${basename(expected)}, but no shard has it`);
    const found = metadata[file]!.path;
    if (found !== expected) throw wrong(tensor, `should be in ${basename(expected)}, but is in ${basename(found)}`);
    if (i % TENSORS_A_TURN === TENSORS_A_TURN - 1) await nextTurn();
  }
  // The index names no tensor twice: with as many names, they are the same.
  if (shardOf.length === fileOf.size) return;
  const listed = new Set(Array.from(shardOf, (_, i) => textAt(names, nameEnds, i)));
  for (const [tensor, file] of fileOf) {
    if (!listed.has(tensor)) throw wrong(tensor, `is in ${basename(metadata[file]!.path)}, but not in the index`);
  }
}

function cannot(what: string, path: string, cause: unknown): FastSafetensorsError {
  return new FastSafetensorsError('IO_ERROR', `cannot ${what} ${path}: ${(cause as Error).message}`, { path, cause });
}
