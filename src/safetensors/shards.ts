import { TextNumbers } from '../base/packed-texts.js';
import { Turns } from '../base/timers.js';
import { type Files, type FilesOptions, listedFiles, resolveFiles } from './files.js';
import { checkIndex, joinByIndex } from './index-join.js';
import { type HeaderOptions, SafeTensorsMetadata } from './metadata.js';
import { type HeaderOf, headersOfNames } from './names-of-no-file.js';
import type { ShardIndex } from './shard-index.js';
import { duplicate, type ShardSet, type ShardTensors } from './shard-set.js';

/** Headers read at a time: each is one round trip or two on a distributed file system. */
const HEADERS_AT_A_TIME = 8;

/** Whether an index decides which tensors there are, or has to agree with its shards: see LoaderOptions. */
export type IndexRule = 'decides' | 'strict';

/** Up to so many files, each header is a call of its own; of more, so many are one call at most. */
const FILES_OF_ONE_CALL = 64;
const MOST_IN_CALL = 16;

/** Descriptors that the process has open beside those of the files. */
const OPEN_BESIDES = 128;

export interface ReadOptions extends FilesOptions, HeaderOptions {
  readonly index?: IndexRule;
  /** Knows headers of names that are no files. */
  readonly headerOf?: HeaderOf;
  /** Hears which files are read, before their headers are. */
  readonly found?: (paths: readonly string[]) => void;
}

/**
 * Reads and checks every header, several at a time, and joins them. The codes of the header's checks, of resolveFiles
 * and of joinShards, MISSING_SHARD, and what `calls` ends them with.
 */
export async function readShards(given: Files, options: ReadOptions): Promise<ShardSet> {
  const files = listedFiles(given);
  const { headerOf, calls } = options;
  const named = headerOf && (await headersOfNames(files, headerOf, calls));
  if (named) return joinShards(named, null);
  const { paths, index, notes, checkUnchanged } = await resolveFiles(files, options);
  if (index?.missing) throw index.missing;
  options.found?.(paths);
  const metadata = await readHeaders(paths, options);
  await checkUnchanged?.();
  const set = await joinShards(metadata, index, options.index);
  return { ...set, notes: [...notes, ...set.notes] };
}

/** Reads and checks the header of each path, in their order; after one that fails none is begun. */
export async function readHeaders(
  paths: readonly string[],
  options: HeaderOptions,
  atATime = HEADERS_AT_A_TIME,
): Promise<SafeTensorsMetadata[]> {
  const metadata = new Array<SafeTensorsMetadata>(paths.length);
  let next = 0;
  // Of many files some are one call, since each costs the event loop as much as a header.
  const inCall = Math.min(Math.ceil(paths.length / FILES_OF_ONE_CALL), MOST_IN_CALL);
  const worker = async (): Promise<void> => {
    while (next < paths.length) {
      const file = next;
      next += inCall;
      try {
        if (inCall === 1) metadata[file] = await SafeTensorsMetadata.read(paths[file]!, options);
        else {
          // A load has them all open at a time where it maps them: the first call makes room for all.
          const descriptors = options.fdCache && file === 0 ? paths.length + OPEN_BESIDES : 0;
          const read = await SafeTensorsMetadata.readMany(paths.slice(file, file + inCall), options, descriptors);
          for (let i = 0; i < read.length; ++i) metadata[file + i] = read[i]!;
        }
      } catch (error) {
        next = paths.length;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(atATime, paths.length) }, worker));
  return metadata;
}

/** All tensors of a file. */
function wholeFile(metadata: SafeTensorsMetadata): ShardTensors {
  return { metadata, selection: null };
}

/**
 * Joins the headers of all files. On return each tensor is in exactly one file: DUPLICATE_TENSOR. With an index, it
 * decides which and whether: see joinByIndex.
 */
export async function joinShards(
  metadata: readonly SafeTensorsMetadata[],
  index: ShardIndex | null,
  rule: IndexRule = 'decides',
): Promise<ShardSet> {
  if (index && rule === 'decides') return joinByIndex(metadata, index);
  const inputs = metadata.map(wholeFile);
  const [only] = metadata;
  if (metadata.length === 1 && !index)
    return { metadata, inputs, notes: [], fileOf: (name) => (only!.has(name) ? 0 : undefined) };
  const firsts = new Uint32Array(metadata.length); // the number of each file's first tensor
  let count = 0;
  for (let file = 0; file < metadata.length; ++file) {
    firsts[file] = count;
    count += metadata[file]!.tensorCount;
  }
  const fileAt = (tensor: number): number => lastUpTo(firsts, tensor);
  const numbers = new TextNumbers(count, (tensor) => {
    const file = fileAt(tensor);
    return metadata[file]!.nameAt(tensor - firsts[file]!);
  });
  const turns = new Turns(128);
  for (let file = 0; file < metadata.length; ++file) {
    const header = metadata[file]!;
    for (let i = 0; i < header.tensorCount; ++i) {
      const name = header.nameAt(i);
      const other = numbers.add(name, firsts[file]! + i);
      if (other >= 0) throw duplicate(name, metadata[fileAt(other)]!, header);
      if (turns.due()) await turns.take();
    }
  }
  const fileOf = (name: string): number | undefined => {
    const tensor = numbers.find(name);
    return tensor < 0 ? undefined : fileAt(tensor);
  };
  if (index) await checkIndex(index, metadata, fileOf, count);
  return { metadata, inputs, notes: [], fileOf };
}

/** The last place of a number that is not above `value` among ascending ones, the first of which is 0. */
function lastUpTo(ascending: Uint32Array, value: number): number {
  let low = 0;
  for (let high = ascending.length; high - low > 1; ) {
    const middle = (low + high) >> 1;
    if (ascending[middle]! <= value) low = middle;
    else high = middle;
  }
  return low;
}
