import { DIGEST_KINDS, type DigestName, digestText } from '../base/digest.js';
import type { FileCalls } from '../base/waiting.js';
import { digestTensors, rangesOf } from './make-sums.js';
import type { SafeTensorsMetadata } from './metadata.js';
import { blobDigest, checkWhole, mismatch, readSums } from './sums.js';

/**
 * Reads a file and compares it with all digests that are known of it: how many tensors these are of. CHECKSUM_MISMATCH
 * with the first that differs; the codes of sums files.
 */
export async function compareData(
  header: SafeTensorsMetadata,
  followLinks: boolean | undefined,
  calls: FileCalls,
): Promise<number> {
  const [sums, blob] = await Promise.all([readSums(header, { followLinks, calls }), blobDigest(header.path, calls)]);
  const all = rangesOf(header);
  let compared = 0;
  for (const [name, kind] of Object.entries(DIGEST_KINDS) as [DigestName, number][]) {
    const tensors = [...all.keys()].filter((tensor) => sums?.kinds[tensor] === kind);
    const ranges = tensors.map((tensor) => all[tensor]!);
    for (const [i, found] of (await digestTensors(header, ranges, name, calls)).entries()) {
      const expected = digestText(sums!, tensors[i]!);
      if (found !== expected) throw mismatch(header, tensors[i]!, { expected, found });
    }
    compared += tensors.length;
  }
  if (!blob || compared === all.length) return compared;
  await checkWhole(header, blob, calls);
  return all.length;
}
