/** Digests of a file's tensors: where they stand, and what is said of bytes that do not have them. */
import { lstat, rename, rm } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { DIGEST_BYTES, DIGEST_KINDS, type DigestName, type PackedDigests } from '../base/digest.js';
import { FastSafetensorsError, ioError } from '../base/errors.js';
import { PackedTexts } from '../base/packed-texts.js';
import { temporaryIn } from '../base/temporary.js';
import { Turns } from '../base/timers.js';
import type { FileCalls } from '../base/waiting.js';
import { fileCall, native, readFile, readlink, settled } from '../native/addon.js';
import type { SafeTensorsMetadata } from './metadata.js';
import { isAbsent, namedFile } from './named-file.js';

/** The key of `__metadata__` that has digests, as the text of a sums file. */
export const SUMS_KEY = 'fastsafetensors.sums';

const MAX_SUMS_BYTES = 100_000_000;

/** Digests of one file's tensors, by their index. */
export interface Sums extends PackedDigests {
  /** Where they stand, for messages. */
  readonly path: string;
}

/** How sums are read. */
export interface SumsOptions {
  readonly followLinks?: boolean;
  readonly calls?: FileCalls;
}

/** Where the digests of a file's tensors are, beside what its header has. */
export function sumsPath(path: string): string {
  return `${path}.sums.json`;
}

/**
 * The digests that there are of a file's tensors: of its sums file, else of its header; undefined for none.
 * CHECKSUM_MISMATCH for a sums file that is none, that is of another file, or whose header has changed; DUPLICATE_KEY;
 * UNKNOWN_TENSOR for a digest of no tensor; IO_ERROR; UNSAFE_SHARD_PATH for a link, where those are not followed.
 */
export async function readSums(metadata: SafeTensorsMetadata, options: SumsOptions): Promise<Sums | undefined> {
  const file = metadata.identity ? await sumsFile(metadata.path, options) : undefined;
  const inHeader = file ? undefined : metadata.metadata.get(SUMS_KEY);
  if (!file && inHeader === undefined) return undefined;
  const path = file ? sumsPath(metadata.path) : `${metadata.path}: ${SUMS_KEY} of __metadata__`;
  const { calls } = options;
  const parsed = await settled(native().parseSums(file ?? Buffer.from(inHeader!), path));
  if (file) await checkFile(metadata, parsed, path, calls);
  return { path, ...(await byTensor(metadata, parsed, path)) };
}

async function sumsFile(file: string, { followLinks = true, calls }: SumsOptions): Promise<Uint8Array | undefined> {
  const path = sumsPath(file);
  try {
    if (!followLinks) {
      const by = { path: file, says: `${path} has digests` };
      await namedFile(basename(path), dirname(path), by, { followLinks, calls });
    }
    return await readFile(path, MAX_SUMS_BYTES, calls);
  } catch (error) {
    const { code, cause } = error as FastSafetensorsError;
    const absent = cannotBe(error) || cannotBe(cause ?? {}) || code === 'MISSING_SHARD';
    if (absent && !(await lstat(path).catch(() => undefined))) return undefined;
    throw error instanceof FastSafetensorsError ? error : ioError('read', path, error);
  }
}

/** Removes the digests of a file that is no more. Rejects as the system does. */
export async function removeSums(path: string): Promise<void> {
  await rm(sumsPath(path), { force: true }).catch((error) => {
    if (!cannotBe(error)) throw error;
  });
}

/**
 * Replaces a file, by `put`, which leaves the old one where it rejects: that keeps its digests, by each of its paths,
 * and the new one has none of them. A crash in between leaves the old file without. Rejects as `put` and the system.
 */
export async function replaceWithSums(paths: readonly string[], put: () => Promise<void>): Promise<void> {
  const aside: [sums: string, temporary: string][] = [];
  try {
    for (const sums of new Set(paths.map(sumsPath))) {
      const temporary = temporaryIn(dirname(sums));
      if (await renameIfThere(sums, temporary)) aside.push([sums, temporary]);
    }
    await put();
  } catch (error) {
    // The first error is thrown.
    for (const [sums, temporary] of aside) await rename(temporary, sums).catch(() => undefined);
    throw error;
  }
  for (const [, temporary] of aside) await rm(temporary, { force: true });
}

/** Whether an error says that a sums file is not there, or of a file whose name is so long that it can have none. */
function cannotBe(error: unknown): boolean {
  return isAbsent(error) || (error as NodeJS.ErrnoException).code === 'ENAMETOOLONG';
}

/** Whether there was something to rename. Rejects as the system does. */
export async function renameIfThere(from: string, to: string): Promise<boolean> {
  try {
    await rename(from, to);
    return true;
  } catch (error) {
    // Of what is not there, too, rename(2) says first that its folder cannot be written to.
    if (isAbsent(error) || (await lstat(from).then(() => false, cannotBe))) return false;
    throw error;
  }
}

/** CHECKSUM_MISMATCH where a sums file says that it is of other bytes. */
async function checkFile(
  metadata: SafeTensorsMetadata,
  { size, header }: { size: number; header: string },
  path: string,
  calls?: FileCalls,
): Promise<void> {
  const advice = `the file was damaged, or changed after ${basename(path)} was made; get it again, or make that anew`;
  if (size >= 0 && size !== metadata.sizeBytes) {
    const message = `${metadata.path}: expected ${size} bytes as ${path} says, found ${metadata.sizeBytes}: ${advice}`;
    throw new FastSafetensorsError('CHECKSUM_MISMATCH', message, { path: metadata.path });
  }
  if (header === '') return;
  const [found] = await digestRanges(metadata, nameOf(header), Float64Array.of(0, metadata.dataStart), calls);
  if (found === header) return;
  const message = `${metadata.path}: expected ${header} of the header, found ${found}: ${advice}`;
  throw new FastSafetensorsError('CHECKSUM_MISMATCH', message, { path: metadata.path, offset: 0 });
}

function nameOf(text: string): DigestName {
  return text.slice(0, text.indexOf(':')) as DigestName;
}

async function byTensor(
  metadata: SafeTensorsMetadata,
  { names, nameEnds, kinds, digests }: PackedDigests & { names: string | Uint8Array; nameEnds: Uint32Array },
  path: string,
): Promise<PackedDigests> {
  const texts = new PackedTexts(names, nameEnds);
  const sorted = {
    kinds: new Uint8Array(metadata.tensorCount),
    digests: new Uint8Array(metadata.tensorCount * DIGEST_BYTES),
  };
  const turns = new Turns(64);
  for (let i = 0; i < texts.length; ++i) {
    const name = texts.at(i);
    const tensor = metadata.indexOf(name);
    if (tensor < 0) {
      const found = `${path}: it has a digest of "${name}", and ${metadata.path} no such tensor`;
      const message = `${found}; make the digests anew`;
      throw new FastSafetensorsError('UNKNOWN_TENSOR', message, { path, tensor: name });
    }
    sorted.kinds[tensor] = kinds[i]!;
    sorted.digests.set(digests.subarray(i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES), tensor * DIGEST_BYTES);
    if (turns.due()) await turns.take();
  }
  return sorted;
}

/**
 * Digests of ranges, [offset, length, …], of the file whose header was read, through the page cache. IO_ERROR,
 * FILE_CHANGED.
 */
export async function digestRanges(
  { path, identity }: Pick<SafeTensorsMetadata, 'path' | 'identity'>,
  name: DigestName,
  ranges: Float64Array,
  calls?: FileCalls,
): Promise<string[]> {
  const progress = native().newProgress();
  const begin = () => native().digestFile(path, identity!, DIGEST_KINDS[name], ranges, progress);
  return fileCall('the digests of', path, begin, calls, () => native().progressOf(progress));
}

/**
 * The SHA-256 that the hub's cache says of a whole file, where its path is a link to a blob that is named so; undefined
 * else.
 */
export async function blobDigest(path: string, calls?: FileCalls): Promise<string | undefined> {
  const target = await readlink(path, calls).catch(() => undefined);
  const [, digits] = /(?:^|\/)blobs\/([0-9a-f]{64})$/.exec(target ?? '') ?? [];
  return digits && `sha256:${digits}`;
}

/** CHECKSUM_MISMATCH unless a whole file has this digest. Reads it all. */
export async function checkWhole(metadata: SafeTensorsMetadata, expected: string, calls?: FileCalls): Promise<void> {
  const [found] = await digestRanges(metadata, 'sha256', Float64Array.of(0, metadata.sizeBytes), calls);
  if (found === expected) return;
  const { path } = metadata;
  const what = `${path}: expected ${expected} of the whole file, as its blob is named, found ${found}`;
  const message = `${what}: it was damaged; download it again`;
  throw new FastSafetensorsError('CHECKSUM_MISMATCH', message, { path, offset: 0 });
}

/** CHECKSUM_MISMATCH of a tensor's bytes. */
export function mismatch(
  metadata: SafeTensorsMetadata,
  tensor: number,
  { expected, found }: { expected: string; found: string },
): FastSafetensorsError {
  const { path, dataStart } = metadata;
  const [begin, end] = [metadata.packed.begins[tensor]!, metadata.packed.ends[tensor]!];
  const name = metadata.nameAt(tensor);
  const offset = dataStart + begin;
  const message =
    `${path}: tensor "${name}": expected ${expected} of the ${end - begin} bytes from byte ${offset} on, ` +
    `found ${found}: the file was damaged, or changed after its digests were made; get it again, or make them anew ` +
    'if it is right';
  return new FastSafetensorsError('CHECKSUM_MISMATCH', message, { path, tensor: name, offset });
}
