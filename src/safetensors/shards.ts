import { basename } from 'node:path';
import { FastSafetensorsError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { native, settled } from '../native/addon.js';
import type { NativeHeaderFdCache } from '../native/core.js';
import { type Files, type ResolvedFiles, resolveFiles, type ShardIndex } from './files.js';
import { SafeTensorsMetadata, textAt } from './metadata.js';

/** Headers read at a time: each is one round trip or two on a distributed file system. */
const HEADERS_AT_A_TIME = 32;

/** The checked headers of several files that have no tensor twice. */
export interface ShardSet {
  readonly metadata: readonly SafeTensorsMetadata[];
  /** The number of the file that has a tensor; undefined for none. */
  fileOf(tensor: string): number | undefined;
}

interface ReadOptions {
  readonly allowTrailingBytes?: boolean;
  /** The headers will be asked for tensors by name; true. */
  readonly byName?: boolean;
  /** Keeps the files open for their data. */
  readonly fdCache?: NativeHeaderFdCache;
}

/**
 * Reads and checks every header, several at a time, and joins them. The codes of the header's checks, of resolveFiles
 * and of joinShards, MISSING_SHARD, and the reason of `signal`.
 */
export async function readShards(
  files: Files,
  { allowTrailingBytes = false, byName = true, fdCache }: ReadOptions,
  signal?: AbortSignal,
): Promise<ShardSet> {
  const { paths, index } = await resolveFiles(files);
  if (index?.missing) throw index.missing;
  const metadata = new Array<SafeTensorsMetadata>(paths.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < paths.length) {
      signal?.throwIfAborted();
      const file = next++;
      const path = paths[file]!;
      const header = await settled(native().readHeader(path, allowTrailingBytes, fdCache));
      metadata[file] = await SafeTensorsMetadata.fromNative(header, path, { byName });
    }
  };
  await Promise.all(Array.from({ length: Math.min(HEADERS_AT_A_TIME, paths.length) }, worker));
  return joinShards(metadata, index);
}

/**
 * Joins the headers of all files. On return each tensor is in exactly one file and, where there is an index, in the
 * file that the index names. DUPLICATE_TENSOR, INVALID_INDEX.
 */
export async function joinShards(
  metadata: readonly SafeTensorsMetadata[],
  index: ResolvedFiles['index'],
): Promise<ShardSet> {
  if (metadata.length === 1 && !index) return { metadata, fileOf: (name) => (metadata[0]!.has(name) ? 0 : undefined) };
  const fileOf = new Map<string, number>();
  const turns = new Turns();
  for (let file = 0; file < metadata.length; ++file) {
    const header = metadata[file]!;
    for (let i = 0; i < header.tensorCount; ++i) {
      const name = header.nameAt(i);
      const other = fileOf.get(name);
      if (other !== undefined) {
        const both = `${metadata[other]!.path} and in ${header.path}`;
        const message = `tensor "${name}" is in ${both}; load them separately or remove one`;
        throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { path: header.path, tensor: name });
      }
      fileOf.set(name, file);
      if (turns.due()) await turns.take();
    }
  }
  if (index) await checkIndex(index, metadata, fileOf);
  return { metadata, fileOf: (name) => fileOf.get(name) };
}

async function checkIndex(
  { path, packed, shards }: ShardIndex,
  metadata: readonly SafeTensorsMetadata[],
  fileOf: ReadonlyMap<string, number>,
): Promise<void> {
  const wrong = (tensor: string, what: string) =>
    new FastSafetensorsError('INVALID_INDEX', `${path}: tensor "${tensor}" ${what}`, { path, tensor });
  const { names, nameEnds, shardOf } = packed;
  const turns = new Turns();
  for (let i = 0; i < shardOf.length; ++i) {
    const tensor = textAt(names, nameEnds, i);
    const expected = shards[shardOf[i]!]!;
    const file = fileOf.get(tensor);
    if (file === undefined) throw wrong(tensor, `should be in ${basename(expected)}, but no shard has it`);
    const found = metadata[file]!.path;
    if (found !== expected) throw wrong(tensor, `should be in ${basename(expected)}, but is in ${basename(found)}`);
    if (turns.due()) await turns.take();
  }
  // The index names no tensor twice: with as many names, they are the same.
  if (shardOf.length === fileOf.size) return;
  const listed = new Set(Array.from(shardOf, (_, i) => textAt(names, nameEnds, i)));
  for (const [tensor, file] of fileOf) {
    if (!listed.has(tensor)) throw wrong(tensor, `is in ${basename(metadata[file]!.path)}, but not in the index`);
  }
}
