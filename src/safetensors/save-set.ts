/** How a set of files takes another's place in a folder: at each moment, and after a crash, old or new, or refused. */
import type { Stats } from 'node:fs';
import { link, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { basename, join, relative } from 'node:path';
import { sync, syncFolder, takeOver, writeWhole } from '../base/atomic-write.js';
import { type FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import type { FileOwner } from '../base/file-owner.js';
import { listed } from '../base/listed.js';
import { isAbsent } from './named-file.js';
import { tensorsOf } from './shard-set.js';
import { readShards } from './shards.js';
import { removeSums, renameIfThere, replaceWithSums, sumsPath } from './sums.js';

export const INDEX = 'model.safetensors.index.json';
const SINGLE = 'model.safetensors';
const OURS = /^model(-\d+-of-\d+)?\.safetensors$/;
/** Second names of files of the old set, and of their digests, while the new ones get theirs. */
const ALIAS = /^\.fst-old-.*\.safetensors(\.sums\.json)?$/;
/** What a folder may mean, but for consolidated*.safetensors, which models have beside them. */
const WEIGHTS = /^(?!\.|consolidated[.-]).*\.safetensors(.*\.index.*\.json)?$/;

/** A finished file, and the name that it gets. */
export interface NewFile {
  readonly temporary: string;
  readonly name: string;
}

export interface NewSet {
  readonly files: readonly NewFile[];
  /** A file with the index, which a set of one file needs, too, while there are others. */
  readonly index: string;
  readonly fsync: boolean;
}

/** The name of each file of a set. */
export function nameOfShard(number: number, count: number): string {
  if (count === 1) return SINGLE;
  const digits = (n: number): string => String(n).padStart(5, '0');
  return `model-${digits(number + 1)}-of-${digits(count)}.safetensors`;
}

/** The text of an index: as Hugging Face's, with names in order. */
export function indexText(totalBytes: number, files: ReadonlyMap<string, string>): string {
  const entries = [...files].map(([tensor, file]) => ({ tensor, file, bytes: Buffer.from(tensor) }));
  entries.sort((a, b) => Buffer.compare(a.bytes, b.bytes));
  const [one, two] = ['\n  ', '\n    '];
  const lines = entries.map(({ tensor, file }) => `${two}${JSON.stringify(tensor)}: ${JSON.stringify(file)}`);
  const map = lines.length > 0 ? `{${lines.join(',')}${one}}` : '{}';
  return `{${one}"metadata": {${two}"total_size": ${totalBytes}${one}},${one}"weight_map": ${map}\n}\n`;
}

/**
 * INVALID_ARGUMENT where a folder has other weights: with a set beside them, nobody could tell which are meant. Returns
 * a file of the set that will be replaced.
 */
export async function checkFolder(folder: string): Promise<Stats | undefined> {
  const names = await readdir(folder);
  const others = names.filter((name) => WEIGHTS.test(name) && name !== INDEX && !OURS.test(name));
  if (others.length > 0) {
    const has = `${folder} has other weights: ${listed(others)}`;
    throw new InvalidArgumentError(`saveSharded: ${has}; choose another folder, or remove them first`);
  }
  const replaced = names.includes(INDEX) ? INDEX : names.find((name) => OURS.test(name));
  const found = replaced === undefined ? undefined : await stat(join(folder, replaced)).catch(() => undefined);
  return found?.isFile() ? found : undefined;
}

/**
 * Gives the files of a new set their names, and removes those of the old one. What is loadable, by readers that look
 * for an index first:
 *
 * - A set of one file takes the place of such a one by one rename.
 * - Else an index decides all the time. Where names are in both sets, or no index is there, the old files get second
 *   names (hard links), and the index is replaced by one that says these. No name that any index says is reused until
 *   then: a reader that finds the index as it was when it had opened the files has those of one set.
 * - The new files get their names, and last the index is replaced by the new one. Then old files are removed.
 *
 * Where the file system has no hard links, the old files are renamed in place of that: MISSING_SHARD for so long. Where
 * they cannot be loaded, those whose names are wanted are removed first, and the new index comes before the files:
 * until the last one, MISSING_SHARD.
 */
export async function replaceSet(folder: string, set: NewSet): Promise<void> {
  const done = async (): Promise<void> => {
    if (set.fsync) await syncFolder(folder);
  };
  const at = (name: string): string => join(folder, name);
  const names = await readdir(folder);
  const old = names.filter((name) => OURS.test(name));
  const hasIndex = names.includes(INDEX);
  const single = set.files.length === 1;
  if (single && !hasIndex && old.every((name) => name === SINGLE)) {
    await replaceWithSums([at(SINGLE)], () => rename(set.files[0]!.temporary, at(SINGLE)));
    return done();
  }

  const taken = new Set(set.files.map(({ name }) => name));
  // Other libraries take model.safetensors before an index.
  if (!single) taken.add(SINGLE);
  const before = old.length > 0 || hasIndex ? await modelIn(folder) : undefined;
  if (before) await secure(folder, before, { taken, hasIndex, fsync: set.fsync, done });
  // The old files have theirs by other names now, or cannot be loaded.
  for (const name of taken) await removeSums(at(name));
  const indexFirst = !before && (old.length > 0 || hasIndex);
  if (indexFirst) {
    await rm(at(INDEX), { force: true });
    await done();
    for (const name of old) if (taken.has(name)) await rm(at(name));
    await done();
    await rename(set.index, at(INDEX));
    await done();
  } else if (!single) {
    await rm(at(SINGLE), { force: true });
    await done();
  }
  for (const { temporary, name } of set.files) await rename(temporary, at(name));
  await done();
  if (!indexFirst) {
    await rename(set.index, at(INDEX));
    await done();
  }
  const kept = new Set(set.files.map(({ name }) => name));
  const aliases = (await readdir(folder)).filter((name) => ALIAS.test(name));
  for (const name of [...old, ...(before?.files.values() ?? []), ...aliases])
    if (!kept.has(name) && basename(name) === name) await removeWithSums(at(name));
  if (single) await rm(at(INDEX), { force: true });
  await done();
}

async function removeWithSums(path: string): Promise<void> {
  await rm(path, { force: true });
  await removeSums(path);
}

interface Model {
  /** By tensor, from its folder. */
  readonly files: ReadonlyMap<string, string>;
  readonly bytes: number;
}

/** The model in a folder; undefined where it cannot be loaded. */
async function modelIn(folder: string): Promise<Model | undefined> {
  try {
    const files = new Map<string, string>();
    let bytes = 0;
    for (const [metadata, index] of tensorsOf(await readShards(folder, { allowTrailingBytes: true }))) {
      files.set(metadata.nameAt(index), relative(folder, metadata.path));
      bytes += metadata.frameAt(index).byteLength;
    }
    return { files, bytes };
  } catch (error) {
    const { code } = error as FastSafetensorsError;
    if (code === 'ADDON_MISSING' || code === 'PLATFORM_UNSUPPORTED') throw error;
    return undefined;
  }
}

interface Securing {
  /** Names that other files will have. */
  readonly taken: ReadonlySet<string>;
  readonly hasIndex: boolean;
  readonly fsync: boolean;
  readonly done: () => Promise<void>;
}

/** Sees to it that an index says where the old files are, by none of the names. */
async function secure(folder: string, { files, bytes }: Model, securing: Securing): Promise<void> {
  const { taken, hasIndex, fsync, done } = securing;
  const inTheWay = [...new Set(files.values())].filter((name) => taken.has(name));
  if (inTheWay.length === 0 && hasIndex) return;
  const token = crypto.randomUUID();
  const aliases = new Map(inTheWay.map((name) => [name, `.fst-old-${token}-${name}`]));
  const index = join(folder, `.fst-old-${token}.safetensors`);
  const linked = await linkAll(folder, aliases);
  const renamed: [name: string, alias: string][] = [];
  let placed = false;
  const place = async (): Promise<void> => {
    await done();
    await rename(index, join(folder, INDEX));
    placed = true;
  };
  try {
    const moved = new Map([...files].map(([tensor, name]) => [tensor, aliases.get(name) ?? name]));
    await writeSynced(index, indexText(bytes, moved), fsync);
    // Where no index says what the old set is, another file there could be taken for it while some are renamed.
    if (!hasIndex) await place();
    for (const [name, alias] of linked ? [] : aliases) {
      await rename(join(folder, name), join(folder, alias));
      renamed.push([name, alias]);
      const sums = await renameIfThere(sumsPath(join(folder, name)), sumsPath(join(folder, alias)));
      if (sums) renamed.push([sumsPath(name), sumsPath(alias)]);
    }
    if (hasIndex) await place();
  } catch (error) {
    const tried = (undone: Promise<void>): Promise<void> => undone.catch(() => {}); // the first error is thrown
    for (const [name, alias] of renamed.reverse()) await tried(rename(join(folder, alias), join(folder, name)));
    if (placed) await tried(rm(join(folder, INDEX), { force: true }));
    for (const alias of linked ? aliases.values() : []) await tried(removeWithSums(join(folder, alias)));
    await tried(rm(index, { force: true }));
    throw error;
  }
  await done();
}

/** Gives files, with their digests, second names; false where that cannot be done, and none has one. */
async function linkAll(folder: string, aliases: ReadonlyMap<string, string>): Promise<boolean> {
  try {
    for (const [name, alias] of aliases) {
      await link(join(folder, name), join(folder, alias));
      await link(sumsPath(join(folder, name)), sumsPath(join(folder, alias))).catch((error) => {
        if (!isAbsent(error)) throw error;
      });
    }
    return true;
  } catch {
    for (const alias of aliases.values()) await removeWithSums(join(folder, alias));
    return false;
  }
}

/** Writes a new file. */
export async function writeSynced(path: string, text: string, fsync: boolean, replaced?: FileOwner): Promise<void> {
  const file = await open(path, 'wx', replaced ? 0o600 : 0o666);
  try {
    await writeWhole(file, Buffer.from(text));
    if (replaced) await takeOver(file, replaced);
    if (fsync) await sync(file);
  } finally {
    await file.close();
  }
}
