/** Files that a text of somebody else's names: an index its shards, a model its data. */
import { join, sep } from 'node:path';
import { FastSafetensorsError, ioError } from '../base/errors.js';
import type { FileCalls } from '../base/waiting.js';
import { readlink, realpath } from '../native/addon.js';

/** What names a file, for messages. */
export interface NamedBy {
  /** The path of the index or model. */
  readonly path: string;
  readonly tensor?: string;
  /** How a message begins: `m.onnx: tensor "w" has its data in "w.bin"`. */
  readonly says: string;
}

/** Why a name may lead out of the folder that it starts from, links aside; undefined when it cannot. */
function unsafe(name: string): string | undefined {
  if (name === '' || name === '.') return 'it is empty';
  if (name.includes('\0')) return 'it contains a NUL';
  if (name.includes('\\')) return 'it contains a backslash';
  if (name.startsWith('/')) return 'it is absolute';
  if (/^[a-z][a-z0-9+.-]*:/i.test(name)) return 'it is a URL or names a drive';
  if (name.split('/').includes('..')) return 'it leaves the folder';
  let decoded: string;
  try {
    decoded = decodeURIComponent(name);
  } catch {
    return undefined; // a lone percent sign is an ordinary character in a file's name
  }
  return decoded === name ? undefined : unsafe(decoded);
}

/**
 * UNSAFE_SHARD_PATH unless a name, as it is written and as some URL's decoder would read it, means something inside the
 * folder that it starts from.
 */
export function checkName(name: string, { path, tensor, says }: NamedBy): void {
  const why = unsafe(name);
  if (why) throw unsafeError(why, { path, tensor, says });
}

function unsafeError(why: string, { path, tensor, says }: NamedBy): FastSafetensorsError {
  const message = `${says}: ${why}; expected a file in the folder of ${path}`;
  return new FastSafetensorsError('UNSAFE_SHARD_PATH', message, { path, tensor });
}

/**
 * Where a named file is: its path in `folder`, and the one that all links lead to. Links are followed wherever they
 * lead: the folder's owner made them, and a text that came with the files cannot. With `followLinks` false they
 * must not leave the folder. Rejects as checkName(), with MISSING_SHARD for a file that is not there, or IO_ERROR.
 */
export async function namedFile(
  name: string,
  folder: string,
  by: NamedBy,
  { followLinks = true, calls }: { followLinks?: boolean; calls?: FileCalls } = {},
): Promise<{ path: string; real: string }> {
  checkName(name, by);
  const path = join(folder, name);
  const real = await realpath(path, calls).catch(async (cause) => {
    if (!isAbsent(cause)) throw ioError('read', path, cause);
    const message = `${by.says}, but ${await absence(path, calls)}`;
    throw new FastSafetensorsError('MISSING_SHARD', message, { path, tensor: by.tensor, cause });
  });
  if (!followLinks) {
    const inside = await realpath(folder, calls);
    if (!real.startsWith(inside.endsWith(sep) ? inside : inside + sep)) {
      throw unsafeError(`it is a link to ${real}, and followLinks is false`, by);
    }
  }
  return { path, real };
}

/** Whether an error of the system says that a file does not exist. */
export function isAbsent(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code!);
}

/** How a message tells that a file is not there. Of a link, what it leads to is not: an interrupted download. */
export async function absence(path: string, calls?: FileCalls): Promise<string> {
  const target = await readlink(path, calls).catch(() => undefined);
  if (target === undefined) return `${path} is not there`;
  return `${path} is a link to ${target}, which is not there; download it again`;
}
