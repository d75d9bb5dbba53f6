/** Digests of tensors, made of the file that has them. */
import { availableParallelism } from 'node:os';
import type { DigestName } from '../base/digest.js';
import type { FileCalls } from '../base/waiting.js';
import { native, settled } from '../native/addon.js';
import type { NativeFileIdentity } from '../native/packed.js';
import type { SafeTensorsMetadata } from './metadata.js';
import { digestRanges, SUMS_KEY } from './sums.js';

const MOST_AT_A_TIME = 8;

/** Hexadecimal digits of a digest. */
const DIGITS: Readonly<Record<DigestName, number>> = { 'xxh3-128': 32, sha256: 64 };

/** A tensor's bytes in its file. */
export interface TensorRange {
  readonly name: string;
  readonly offset: number;
  readonly length: number;
}

/** The tensors of a file. */
export function rangesOf(metadata: SafeTensorsMetadata): TensorRange[] {
  const { begins, ends } = metadata.packed;
  return Array.from({ length: metadata.tensorCount }, (_, i) => ({
    name: metadata.nameAt(i),
    offset: metadata.dataStart + begins[i]!,
    length: ends[i]! - begins[i]!,
  }));
}

/** The digest of each range, several at a time. IO_ERROR, FILE_CHANGED. */
export async function digestTensors(
  file: Pick<SafeTensorsMetadata, 'path' | 'identity'>,
  ranges: readonly TensorRange[],
  name: DigestName,
  calls?: FileCalls,
): Promise<string[]> {
  const digests = new Array<string>(ranges.length);
  const bytes = ranges.reduce((sum, { length }) => sum + length, 0);
  const most = Math.min(availableParallelism(), MOST_AT_A_TIME);
  const groups: number[][] = [];
  let left = 0; // bytes that the present group still takes, one at least for each range
  for (const [i, { length }] of ranges.entries()) {
    if (left <= 0) {
      groups.push([]);
      left = Math.ceil((bytes + ranges.length) / most);
    }
    groups.at(-1)!.push(i);
    left -= length + 1;
  }
  const digest = async (group: readonly number[]): Promise<void> => {
    const places = Float64Array.from(group.flatMap((i) => [ranges[i]!.offset, ranges[i]!.length]));
    const texts = await digestRanges(file, name, places, calls);
    for (const [i, index] of group.entries()) digests[index] = texts[i]!;
  };
  await Promise.all(groups.map(digest));
  return digests;
}

/** The text of a sums file, or of SUMS_KEY. */
export function sumsText(
  ranges: readonly TensorRange[],
  digests: readonly string[],
  file?: { readonly size: number; readonly header: string },
): string {
  const entries = ranges.map(({ name }, i) => `${JSON.stringify(name)}:${JSON.stringify(digests[i])}`);
  if (!file) return `{"tensors":{${entries.join(',')}}}`;
  const { size, header } = file;
  return `{"size":${size},"header":${JSON.stringify(header)},"tensors":{\n${entries.join(',\n')}\n}}\n`;
}

/** What a header says of digests, where they are not known yet: as long as it will be. */
export function roomForSums(names: readonly string[]): [key: string, text: string] {
  const ranges = names.map((name) => ({ name, offset: 0, length: 0 }));
  const digest = `xxh3-128:${'0'.repeat(DIGITS['xxh3-128'])}`;
  return [SUMS_KEY, sumsText(ranges, new Array<string>(names.length).fill(digest))];
}

/** What a header says of the digests of tensors that are in a file, which is being written. */
export async function sumsForHeader(
  path: string,
  ranges: readonly TensorRange[],
): Promise<[key: string, text: string]> {
  const { dev, ino, size, mtimeNs } = await settled(native().statFile(path));
  const identity: NativeFileIdentity = { dev, ino, size: BigInt(size), mtimeNs };
  return [SUMS_KEY, sumsText(ranges, await digestTensors({ path, identity }, ranges, 'xxh3-128'))];
}
