/** Which .safetensors files the option `files` means. Every loader, adapter and command asks here. */
import { basename, join } from 'node:path';
import { fail as failCheck, isList, isUrl, pathOf } from '../base/checks.js';
import { type ErrorCode, FastSafetensorsError, InvalidArgumentError, ioError } from '../base/errors.js';
import { listed } from '../base/listed.js';
import type { FileCalls } from '../base/waiting.js';
import { type FileInfo, readdir, stat } from '../native/addon.js';
import { snapshotOf } from './hub-cache.js';
import { absence, isAbsent } from './named-file.js';
import { mayBeNoPath, nothingHere, refusePattern } from './no-files.js';
import { checkIndexUnchanged, readIndex, type ShardIndex } from './shard-index.js';

/**
 * One .safetensors file, several (an array or another iterable), a folder or an index file (`*.json`); `~` and file:
 * URLs are understood. A folder
 * means its one `*.safetensors.index*.json`; without one a whole set of `-0000i-of-0000N`; else its `*.safetensors` in
 * the order of their names. A folder of the Hugging Face cache (`models--org--name`) means its snapshot of refs/main.
 */
export type Files = string | URL | Iterable<string | URL>;

/**
 * What `files` stands for, its list copied: an iterator runs only once, and loads are many. INVALID_ARGUMENT for what
 * is neither a path nor a list; paths are checked by resolveFiles().
 */
export function listedFiles(files: Files, name = 'files'): string | URL | readonly (string | URL)[] {
  if (typeof files === 'string' || isUrl(files)) return files;
  if (!isList(files)) failCheck(name, 'a path, or an array of paths', files);
  return [...files];
}

/** How files are found; see LoaderOptions. */
export interface FilesOptions {
  readonly followLinks?: boolean;
  readonly variant?: string;
  /** Limits the looks at files. */
  readonly calls?: FileCalls;
}

export interface ResolvedFiles {
  /** In the order in which they are loaded. Not all need exist. */
  readonly paths: readonly string[];
  readonly index: ShardIndex | null;
  /** What of a folder was left out, for the report. */
  readonly notes: readonly string[];
  /** When the headers were read: FILE_CHANGED where an index or a folder means other files by now. */
  readonly checkUnchanged?: () => Promise<void>;
}

function pathOfFile(file: string | URL): string {
  return pathOf(file, 'files');
}

function isIndex(path: string): boolean {
  return path.endsWith('.json');
}

/** NO_FILES, INVALID_INDEX, MISSING_SHARD, UNSAFE_SHARD_PATH, IO_ERROR or INVALID_ARGUMENT. */
export async function resolveFiles(given: Files, options: FilesOptions = {}): Promise<ResolvedFiles> {
  const files = listedFiles(given);
  if (typeof files === 'string' || isUrl(files)) return resolvePath(pathOf(files, 'files'), options);
  if (files.length === 0)
    throw new FastSafetensorsError('NO_FILES', 'files: the list is empty, expected at least one path');
  const paths = files.map(pathOfFile);
  if (paths.length === 1) return resolvePath(paths[0]!, options);
  // With an index among the files, nobody could tell which tensors come from where.
  const index = paths.find(isIndex);
  if (index !== undefined) {
    throw new InvalidArgumentError(`files: "${index}" is an index; pass it alone, it names its shards itself`);
  }
  for (const path of paths) if (mayBeNoPath(path)) await statIfThere(path, options.calls);
  return { paths, index: null, notes: [] };
}

/** Undefined for what is not there; what that looks like a pattern or the name of a model says what to do. */
function statIfThere(path: string, calls?: FileCalls): Promise<FileInfo | undefined> {
  return stat(path, calls).catch(async (error) => {
    if (isAbsent(error)) await refusePattern(path, error, calls);
    return undefined;
  });
}

async function resolvePath(path: string, options: FilesOptions): Promise<ResolvedFiles> {
  const info = await statIfThere(path, options.calls);
  if (info?.isDirectory()) return resolveFolder(path, options);
  if (path.endsWith('.json')) return byIndex(await readIndex(path, options), [], options.calls);
  // A path that does not exist is reported when its header is read.
  return { paths: [path], index: null, notes: [] };
}

async function resolveFolder(folder: string, options: FilesOptions): Promise<ResolvedFiles> {
  const { calls } = options;
  const entries = await readdir(folder, calls).catch((cause) => {
    throw ioError('list', folder, cause);
  });
  const names = visibleNames(entries);
  const model = modelAmong(names, folder, options.variant);
  if (!model) {
    const snapshot = await snapshotOf(folder, calls);
    if (snapshot === undefined) throw await nothingHere(folder, entries, calls);
    return resolveFolder(snapshot, options);
  }
  const leftOut = (files: readonly string[]): string[] => {
    const own = new Set(files);
    const others = names.filter((name) => name.endsWith('.safetensors') && !own.has(name)).sort();
    return others.length > 0 ? [`${folder}: left out beside ${labelOf(model)}: ${listed(others)}`] : [];
  };
  if (model.kind === 'index') {
    const index = await readIndex(join(folder, model.files[0]!), options);
    return byIndex(index, leftOut(index.shards.map((shard) => basename(shard))), calls);
  }
  await refuseUnfinished(folder, model.files, entries, calls);
  const paths = model.files.map((name) => join(folder, name));
  const checkUnchanged = (): Promise<void> => checkMeans(folder, model, options);
  return { paths, index: null, notes: leftOut(model.files), ...(model.kind === 'set' && { checkUnchanged }) };
}

/** What macOS and downloads leave behind begins with a dot. */
function visibleNames(entries: readonly FileInfo[]): string[] {
  return entries.map(({ name }) => name).filter((name) => !name.startsWith('.'));
}

function byIndex(index: ShardIndex, notes: readonly string[], calls?: FileCalls): ResolvedFiles {
  const checkUnchanged = (): Promise<void> => checkIndexUnchanged(index, calls);
  // One file may be spelled in several ways.
  return { paths: [...new Set(index.shards)].sort(), index, notes, checkUnchanged };
}

/** FILE_CHANGED where a folder has another model by now: see checkIndexUnchanged(). */
async function checkMeans(folder: string, model: Candidate, { variant, calls }: FilesOptions): Promise<void> {
  const entries = await readdir(folder, calls).catch((cause) => {
    throw ioError('list', folder, cause);
  });
  const now = modelAmong(visibleNames(entries), folder, variant);
  if (now?.kind === model.kind && now.files.length === model.files.length) return;
  const message = `${folder} was changed while the files of its model were opened; load it again`;
  throw fail('FILE_CHANGED', folder, message);
}

/** MISSING_SHARD for links to nothing, and for files that a download has not completed. */
async function refuseUnfinished(
  folder: string,
  files: readonly string[],
  entries: readonly FileInfo[],
  calls?: FileCalls,
): Promise<void> {
  const links = new Set(entries.filter((entry) => entry.isSymbolicLink()).map(({ name }) => name));
  const all = new Set(entries.map(({ name }) => name));
  for (const name of files) {
    const path = join(folder, name);
    if (all.has(`${name}.aria2`)) {
      throw fail('MISSING_SHARD', path, `${path} is not whole: ${name}.aria2 beside it is of an unfinished download`);
    }
    if (!links.has(name)) continue;
    const gone = await stat(path, calls).then(
      () => false,
      (error) => isAbsent(error),
    );
    if (gone) throw fail('MISSING_SHARD', path, await absence(path, calls));
  }
}

/** What the names of a folder may mean. */
interface Candidate {
  readonly kind: 'index' | 'set' | 'file';
  /** The names of its files; of an index only its own. */
  readonly files: readonly string[];
  /** What is left of a name without variant, numbers and ending. */
  readonly stem: string;
  /** '' for none. */
  readonly variant: string;
}

const INDEX = /^(.+?)\.safetensors(?:\.([^.]+))?\.index(?:[._-]?([^.]+))?\.json$/;
const SHARD = /^(.+?)-(\d+)-of-(\d+)(?:\.([^.]+))?\.safetensors$/;
const FILE = /^(.+)\.safetensors$/;
/** `model.fp16`, but not `v1.5`: where nobody says what the variant is, it begins with a letter. */
const VARIANT = /^(.+)\.([a-z][\w-]*)$/i;
/** Variants that are the same weights in another form, also where no file is without a variant. */
const FORMS = /^(b?fp?\d+\w*|u?int\d+|q\d.*|(non_?)?ema)$/i;
/** Mistral's own form of the weights, which lies beside the same ones in the hub's. */
const CONSOLIDATED = /^consolidated[.-]/;

/**
 * What a folder of these names means; undefined for nothing. With `variant` only what is of it; '' for none.
 * INVALID_ARGUMENT when several may be meant, MISSING_SHARD for a set that is not whole, NO_FILES for a variant that is
 * not there.
 */
function modelAmong(names: readonly string[], folder: string, variant?: string): Candidate | undefined {
  const others = names.filter((name) => !CONSOLIDATED.test(name));
  if (others.length < names.length) {
    const model = modelAmong(others, folder, variant);
    if (model && (model.kind !== 'file' || model.files.some((name) => name.startsWith('model.')))) return model;
  }
  const all = candidates(names, variant);
  const wanted = variant === undefined ? all : all.filter((candidate) => candidate.variant === variant);
  if (all.length > wanted.length && wanted.length === 0) {
    const there = [...new Set(all.map((candidate) => `'${candidate.variant}'`))].join(', ');
    throw fail('NO_FILES', folder, `${folder} has no weights of variant '${variant}'; it has ${there}`);
  }
  for (const kind of ['index', 'set']) {
    const [model, ...more] = wanted.filter((candidate) => candidate.kind === kind);
    if (model && more.length > 0) throw several(folder, [model, ...more]);
    if (model?.kind === 'set') checkWhole(folder, model.files);
    if (model) return model;
  }
  if (wanted.length === 0) return undefined;
  for (const same of byStem(wanted).values()) {
    const forms = same.filter(({ variant }) => variant === '' || FORMS.test(variant));
    if (same.length > 1 && forms.length > 0) throw several(folder, same);
  }
  return { ...wanted[0]!, files: wanted.flatMap(({ files }) => files) };
}

/** In the order of names. */
function candidates(names: readonly string[], asked?: string): Candidate[] {
  const found: Candidate[] = [];
  const sets = new Map<string, string[]>();
  for (const name of [...names].sort()) {
    const index = INDEX.exec(name);
    const shard = SHARD.exec(name);
    const [, whole] = index ?? shard ?? FILE.exec(name) ?? [];
    if (whole === undefined) continue;
    const said = index?.[3] ?? index?.[2] ?? shard?.[4];
    const candidate = said === undefined ? splitStem(whole, asked) : { stem: whole, variant: said };
    if (!shard) {
      found.push({ kind: index ? 'index' : 'file', files: [name], ...candidate });
      continue;
    }
    const key = JSON.stringify([candidate, Number(shard[3])]);
    const set = sets.get(key);
    if (set) set.push(name);
    else {
      const files = [name];
      sets.set(key, files);
      found.push({ kind: 'set', files, ...candidate });
    }
  }
  return found;
}

/** Cuts the variant off a name: the one that was asked for, or one that looks so. */
function splitStem(name: string, asked = ''): { stem: string; variant: string } {
  if (asked !== '' && name.endsWith(`.${asked}`)) return { stem: name.slice(0, -asked.length - 1), variant: asked };
  const [, stem = name, variant = ''] = VARIANT.exec(name) ?? [];
  return { stem, variant };
}

function byStem(files: readonly Candidate[]): Map<string, Candidate[]> {
  const stems = new Map<string, Candidate[]>();
  for (const file of files) {
    const same = stems.get(file.stem);
    if (same) same.push(file);
    else stems.set(file.stem, [file]);
  }
  return stems;
}

/** MISSING_SHARD unless the files of a set are those from 1, or from 0, to their number. */
function checkWhole(folder: string, files: readonly string[]): void {
  const numberOf = (name: string) => Number(SHARD.exec(name)![2]);
  const numbers = new Set(files.map(numberOf));
  const [, , digits, total] = SHARD.exec(files[0]!)!;
  const first = numbers.has(0) ? 0 : 1;
  for (let number = first; number < first + Number(total); ++number) {
    if (numbers.has(number)) continue;
    const name = files[0]!.replace(/-\d+-of-/, `-${String(number).padStart(digits!.length, '0')}-of-`);
    const whole = `${folder} has ${files.length} of the ${Number(total)} files that belong to ${files[0]}`;
    const what = `${whole}, but not ${name}; download it again, or pass the files themselves to load these alone`;
    throw fail('MISSING_SHARD', join(folder, name), what);
  }
}

function several(folder: string, models: readonly Candidate[]): FastSafetensorsError {
  const variants = models.flatMap(({ variant }) => (variant === '' ? [] : [variant]));
  const choose = variants.length > 0 ? `choose one by variant: '${variants[0]}', or pass` : 'pass';
  const what = `${folder} holds several models: ${listed(models.map(labelOf))}`;
  return fail('INVALID_ARGUMENT', folder, `${what}; ${choose} the index or the files of one`);
}

/** How messages call a model. */
function labelOf({ files }: Candidate): string {
  return files.length > 1 ? `${files[0]} and ${files.length - 1} more` : files[0]!;
}

function fail(code: ErrorCode, path: string, message: string): FastSafetensorsError {
  return new FastSafetensorsError(code, message, { path });
}
