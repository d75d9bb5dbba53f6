/** The index of a model in several files: which tensor is in which. */
import { dirname } from 'node:path';
import { FastSafetensorsError, ioError } from '../base/errors.js';
import { PackedTexts } from '../base/packed-texts.js';
import type { FileCalls } from '../base/waiting.js';
import { native, readFile, settled, stat } from '../native/addon.js';
import type { NativeShardIndex } from '../native/packed.js';
import { isAbsent, namedFile } from './named-file.js';
import { otherFormat } from './other-format.js';

const MAX_INDEX_BYTES = 100_000_000;
const SHARDS_AT_A_TIME = 8;

/** An index that names no file outside its folder; whether the shards agree with it is checked when they are joined. */
export interface ShardIndex {
  readonly path: string;
  readonly packed: NativeShardIndex;
  /** By tensor: its name. */
  readonly names: PackedTexts;
  /** The path of each shard, by its number in `packed`. */
  readonly shards: readonly string[];
  /** MISSING_SHARD of the first shard that does not exist, for the caller to throw. */
  readonly missing: FastSafetensorsError | undefined;
  /** Before it was read. */
  readonly identity: FileIdentity;
}

/** NO_FILES, INVALID_INDEX, UNSAFE_SHARD_PATH or IO_ERROR. */
export async function readIndex(
  path: string,
  options: { followLinks?: boolean; calls?: FileCalls },
): Promise<ShardIndex> {
  const { bytes, identity } = await read(path, options.calls);
  const packed = await settled(native().parseShardIndex(bytes, path)).catch((error) => {
    const format = otherFormat(bytes, 'json');
    if (format === undefined) throw error;
    throw new FastSafetensorsError('INVALID_INDEX', `${path}: expected an index, but it is ${format}`, { path });
  });
  if (packed.shardOf.length === 0)
    throw new FastSafetensorsError('NO_FILES', `${path}: its weight_map names no tensor`, { path });
  const texts = new PackedTexts(packed.shards, packed.shardEnds);
  const names = Array.from({ length: texts.length }, (_, shard) => texts.at(shard));
  return {
    path,
    packed,
    identity,
    names: new PackedTexts(packed.names, packed.nameEnds),
    ...(await shardsNamed(names, path, options)),
  };
}

/** Where the shards are. A few are looked at a time: an index of somebody else's may name a million. */
async function shardsNamed(
  names: readonly string[],
  path: string,
  options: { followLinks?: boolean; calls?: FileCalls },
): Promise<Pick<ShardIndex, 'shards' | 'missing'>> {
  const shards = new Array<string>(names.length);
  let missing: FastSafetensorsError | undefined;
  let firstMissing = names.length;
  let next = 0;
  const look = async (): Promise<void> => {
    while (next < names.length) {
      const shard = next++;
      const says = `${path} names the shard ${JSON.stringify(names[shard])}`;
      try {
        shards[shard] = (await namedFile(names[shard]!, dirname(path), { path, says }, options)).path;
      } catch (error) {
        if (!(error instanceof FastSafetensorsError) || error.code !== 'MISSING_SHARD') {
          next = names.length;
          throw error;
        }
        shards[shard] = error.path!; // of what is missing
        if (shard < firstMissing) [firstMissing, missing] = [shard, error];
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(SHARDS_AT_A_TIME, names.length) }, look));
  return { shards, missing };
}

/**
 * FILE_CHANGED where an index is not the one that was read. It is called when the shards were opened: a set is replaced
 * so that no name of a shard gets another file before the index that has it is gone.
 */
export async function checkIndexUnchanged({ path, identity }: ShardIndex, calls?: FileCalls): Promise<void> {
  const now = await stat(path, calls).catch((error) => {
    if (isAbsent(error)) return undefined;
    throw ioError('read', path, error);
  });
  if (now && now.ino === identity.ino && now.mtimeNs === identity.mtimeNs && now.size === identity.size) return;
  const message = `${path} was replaced while its shards were opened: its model was saved anew; load it again`;
  throw new FastSafetensorsError('FILE_CHANGED', message, { path });
}

interface FileIdentity {
  readonly ino: bigint;
  readonly mtimeNs: bigint;
  readonly size: number;
}

async function read(path: string, calls?: FileCalls): Promise<{ bytes: Uint8Array; identity: FileIdentity }> {
  const info = await stat(path, calls).catch((cause) => {
    throw ioError('read', path, cause);
  });
  if (info.size > MAX_INDEX_BYTES) {
    const message = `${path}: expected at most ${MAX_INDEX_BYTES} bytes, found ${info.size}`;
    throw new FastSafetensorsError('INVALID_INDEX', message, { path });
  }
  const bytes = await readFile(path, MAX_INDEX_BYTES, calls).catch((cause) => {
    throw ioError('read', path, cause);
  });
  return { bytes, identity: info };
}
