import { FastSafetensorsError } from '../base/errors.js';
import type { Copier, CopierConstructor, CopyRequest, Destination } from './copier.js';

/** What the option `reader` of the 3FS loaders takes: an object of the user's that reads in place of USRBIO. */
export interface ChunkReader {
  /**
   * Reads `length` bytes of the file, from `fileOffset` on, to the start of `destination`: to its `pointer`, or through
   * its `write`. Returns the number of bytes that were read; fewer than `length` is SHORT_READ. Called for several
   * ranges at a time.
   */
  readChunked(
    path: string,
    destination: Destination,
    fileOffset: number,
    length: number,
  ): number | bigint | Promise<number | bigint>;
}

/** A range of another destination. */
function rangeOf(whole: Destination, offset: number, byteLength: number): Destination {
  return {
    device: whole.device,
    byteLength,
    get pointer() {
      return whole.pointer + BigInt(offset);
    },
    async write(destOffset, bytes) {
      if (!Number.isSafeInteger(destOffset) || destOffset < 0 || destOffset + bytes.byteLength > byteLength) {
        const range = `${bytes.byteLength} bytes at offset ${destOffset}`;
        const message = `write: ${range} reach outside the destination of ${byteLength} bytes`;
        throw new FastSafetensorsError('INVALID_ARGUMENT', message);
      }
      return whole.write(offset + destOffset, bytes);
    },
  };
}

/** Makes copiers of the user's reader. They have no state, so one serves all files. */
export function chunkReaderConstructor(reader: ChunkReader): CopierConstructor {
  const copier: Copier<Promise<void>> = {
    submitIo(request) {
      const pending = copy(reader, request);
      pending.catch(() => {}); // waitIo reports it
      return pending;
    },
    waitIo: (pending) => pending,
    close: async () => {},
  };
  return () => copier as Copier;
}

async function copy(reader: ChunkReader, { path, ranges, destination, signal }: CopyRequest): Promise<void> {
  for (const { fileOffset, length, destOffset } of merged(ranges)) {
    signal.throwIfAborted();
    const target = rangeOf(destination, destOffset, length);
    const read = await reader.readChunked(path, target, fileOffset, length);
    if (Number(read) === length) continue;
    const what = `${path}: reader.readChunked gave ${String(read)} at offset ${fileOffset}, expected ${length} bytes`;
    const short = Number(read) >= 0 && Number(read) < length;
    const offset = fileOffset + (short ? Number(read) : 0);
    throw new FastSafetensorsError(short ? 'SHORT_READ' : 'IO_ERROR', what, { path, offset });
  }
}

/** Joins ranges that follow each other both in the file and in memory. */
function merged(ranges: CopyRequest['ranges']): CopyRequest['ranges'] {
  const result: { fileOffset: number; length: number; destOffset: number }[] = [];
  for (const range of ranges) {
    if (range.length === 0) continue;
    const last = result.at(-1);
    if (
      last &&
      last.fileOffset + last.length === range.fileOffset &&
      last.destOffset + last.length === range.destOffset
    ) {
      last.length += range.length;
    } else {
      result.push({ ...range });
    }
  }
  return result;
}
