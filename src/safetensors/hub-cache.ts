/** The cache of the Hugging Face hub. models--org--name/ has blobs/, refs/ and snapshots/REVISION/, links to blobs. */
import { join } from 'node:path';
import { homeFolder } from '../base/checks.js';
import { FastSafetensorsError, ioError } from '../base/errors.js';
import { listed } from '../base/listed.js';
import type { FileCalls } from '../base/waiting.js';
import { readdir, readFile, stat } from '../native/addon.js';
import { checkName, isAbsent } from './named-file.js';

/** The folder of a model, by its name in the hub, `org/name`; undefined where this machine has none. */
export async function cachedRepository(id: string, calls?: FileCalls): Promise<string | undefined> {
  const { HF_HUB_CACHE, HF_HOME = join(homeFolder(), '.cache', 'huggingface') } = process.env;
  const folder = join(HF_HUB_CACHE ?? join(HF_HOME, 'hub'), `models--${id.replace('/', '--')}`);
  return stat(folder, calls).then(
    () => folder,
    () => undefined,
  );
}

/**
 * The snapshot of a folder of the Hugging Face cache, `refs/main` before others; undefined for another folder.
 * MISSING_SHARD for a snapshot that is not there, UNSAFE_SHARD_PATH, INVALID_ARGUMENT for several, IO_ERROR.
 */
export async function snapshotOf(folder: string, calls?: FileCalls): Promise<string | undefined> {
  const names = await list(folder, calls);
  if (!names.includes('snapshots') || !(names.includes('refs') || names.includes('blobs'))) return undefined;
  const snapshots = join(folder, 'snapshots');
  const main = join(folder, 'refs', 'main');
  const revisions = (await list(snapshots, calls)).filter((name) => !name.startsWith('.')).sort();
  const bytes = await readFile(main, 4096, calls).catch((cause) => {
    if (isAbsent(cause)) return undefined;
    throw ioError('read', main, cause);
  });
  const revision = bytes && Buffer.from(bytes).toString().trim();
  if (revision === undefined) {
    if (revisions.length === 1) return join(snapshots, revisions[0]!);
    if (revisions.length === 0) return undefined;
    const what = `${folder} has no refs/main and several snapshots: ${listed(revisions)}; pass the folder of one`;
    throw new FastSafetensorsError('INVALID_ARGUMENT', what, { path: folder });
  }
  const says = `${main} names the snapshot ${JSON.stringify(revision)}`;
  checkName(revision, { path: main, says });
  if (revisions.includes(revision)) return join(snapshots, revision);
  const message = `${says}, which is not in ${snapshots}; download the model again`;
  throw new FastSafetensorsError('MISSING_SHARD', message, { path: join(snapshots, revision) });
}

async function list(folder: string, calls?: FileCalls): Promise<string[]> {
  const entries = await readdir(folder, calls).catch((cause) => {
    throw ioError('list', folder, cause);
  });
  return entries.map(({ name }) => name);
}
