import { dirname } from 'node:path';
import { writeAtomically } from '../base/atomic-write.js';
import * as check from '../base/checks.js';
import { removeDead } from '../base/temporary.js';
import { checkMetadata, encodeHeader, type SaveMetadata } from './save-header.js';
import { saveOne } from './save-sharded.js';
import { byLayout, checkTensors, type Item, piecesOf, type SaveTensor } from './save-tensors.js';
import { replaceWithSums } from './sums.js';

export type { SaveArray, SaveDeviceTensor, SaveTensor } from './save-tensors.js';

/** Options of saveFile. */
export interface SaveFileOptions {
  /** Texts by name, written as the header's `__metadata__`; default: none. */
  readonly metadata?: SaveMetadata;
  /** Whether the header gets digests of the tensors, which loaders compare them with. Default: false. */
  readonly checksum?: boolean;
}

/**
 * Writes a .safetensors file byte for byte as the format's own writers do, except for the order of metadata, which is
 * random in theirs: tensors by dtype, those of wide elements first, then by name; the header padded with spaces to a
 * multiple of 8. Atomic: readers see the old file or the whole new one, and on failure `path` is unchanged. An existing
 * file keeps its mode; of a link, what it leads to is written.
 *
 * `tensors`: a list, or a record or Map by names, which are those that are written. Rejects with UNKNOWN_DTYPE,
 * TENSOR_INVALID_INFO (shape and data disagree), DUPLICATE_TENSOR, HEADER_TOO_LARGE, IO_ERROR (also for a path where a
 * folder, device, pipe or socket is), CLOSED and CUDA_ERROR of DeviceTensors, or INVALID_ARGUMENT for what is no
 * tensor, name, path or option.
 */
export async function saveFile(
  tensors: Iterable<SaveTensor> | Readonly<Record<string, SaveTensor>> | ReadonlyMap<string, SaveTensor>,
  file: string | URL,
  options: SaveFileOptions = {},
): Promise<void> {
  check.takesAtMost(3, arguments, 'saveFile');
  const path = check.pathOf(file, 'saveFile');
  const { checksum, ...given } = check.checkOptions(options, { metadata: () => {}, checksum: check.boolean });
  const metadata = checkMetadata(given.metadata, 'saveFile');
  const place = { by: 'saveFile', path } as const;
  const items = checkTensors(tensors, place).sort(byLayout);
  if (checksum) {
    await saveOne(items, path, { metadata: metadata && new Map(metadata), checksum }, 'saveFile');
    return;
  }
  const header = encodeHeader(items, metadata, place);
  await removeDead(dirname(path)).catch(() => undefined); // whether it can be written to, writing says
  await writeAtomically(path, bytesOf(header, items), (target, put) => replaceWithSums([path, target], put));
}

async function* bytesOf(header: Uint8Array, items: readonly Item[]): AsyncGenerator<Uint8Array, void, void> {
  yield header;
  for (const item of items) yield* piecesOf(item);
}
