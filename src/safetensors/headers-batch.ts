import * as check from '../base/checks.js';
import { held } from '../base/timers.js';
import { type FileCalls, unlessAborted } from '../base/waiting.js';
import type { SafeTensorsMetadata } from './metadata.js';
import { readHeaders } from './shards.js';

/** Options of readHeadersBatch. */
export interface HeadersBatchOptions {
  /** Headers that are read at a time; default: 32. On a distributed file system each is a round trip or two. */
  readonly threads?: number;
  /** As of SafeTensorsMetadata.fromFile. */
  readonly allowTrailingBytes?: boolean;
  /** Rejects with its reason when aborted; headers in progress are still read. */
  readonly signal?: AbortSignal;
}

const CHECKS = {
  threads: check.integer(1, 1024),
  allowTrailingBytes: check.boolean,
  signal: check.methods('an AbortSignal', 'throwIfAborted', 'addEventListener', 'removeEventListener'),
};

/**
 * Reads and checks the headers of many files, several at a time, off the event loop: by path, as it was given (`~` and
 * file: URLs resolved), in the order of the paths. Each is a file; nothing is looked for in folders. Rejects with the
 * codes of SafeTensorsMetadata.fromFile for the first that fails, and reads none of the rest.
 */
export async function readHeadersBatch(
  paths: Iterable<string | URL>,
  options: HeadersBatchOptions = {},
): Promise<Map<string, SafeTensorsMetadata>> {
  check.takesAtMost(2, arguments, 'readHeadersBatch');
  const { threads = 32, allowTrailingBytes, signal } = check.checkOptions(options, CHECKS);
  signal?.throwIfAborted();
  const given = check.listOf(paths, 'readHeadersBatch', 'an array of paths');
  const files = [...new Set(given.map((path) => check.pathOf(path, 'readHeadersBatch')))];
  const calls: FileCalls = {
    async call(_what, _path, begin) {
      signal?.throwIfAborted();
      return begin();
    },
  };
  const reading = readHeaders(files, { allowTrailingBytes, calls }, threads);
  const headers = await held(unlessAborted(reading, signal ? [signal] : []));
  return new Map(headers.map((header) => [header.path, header]));
}
