import { readFile } from 'node:fs/promises';
import { type Check, checkOptions, fail, notNegative } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import type { CopierFactory, CopyRange, CopyRequest } from '../copiers/copier.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';

export interface MockCopierOptions {
  /** Bytes of tensors by name, in place of those in the file; each as long as the header says. Others come from the file. */
  tensors?: Readonly<Record<string, ArrayBufferView>> | ReadonlyMap<string, ArrayBufferView>;
  /** Fails with IO_ERROR at this tensor: its name, or its number in the order of copying, the first is 1. */
  failAt?: string | number;
  /** Each request takes this long. */
  delayMs?: number;
}

const bytesByName: Check = (value, name) => {
  const entries = value instanceof Map ? [...value.values()] : Object.values((value as object | null) ?? {});
  if (typeof value !== 'object' || value === null || !entries.every((bytes) => ArrayBuffer.isView(bytes)))
    fail(name, 'typed arrays by the names of tensors', value);
};
const nameOrNumber: Check = (value, name) => {
  if (typeof value !== 'string' && !(Number.isSafeInteger(value) && (value as number) >= 1))
    fail(name, "a tensor's name, or its number from 1", value);
};

/** A copier for tests, pure TypeScript: `registerCopier('mock', mockCopier({ … }))`, then a loader with `copier: 'mock'`. INVALID_ARGUMENT. */
export function mockCopier(options: MockCopierOptions = {}): CopierFactory {
  checkOptions(options, { tensors: bytesByName, failAt: nameOrNumber, delayMs: notNegative });
  const { delayMs = 0, failAt } = options;
  const tensors = options.tensors instanceof Map ? options.tensors : new Map(Object.entries(options.tensors ?? {}));
  let copied = 0; // tensors, over all files

  const copy = async (
    metadata: SafeTensorsMetadata,
    { path, ranges, destination, signal }: CopyRequest,
  ): Promise<void> => {
    if (delayMs > 0) await delay(delayMs, signal);
    let file: Uint8Array | undefined;
    for (const range of ranges) {
      signal.throwIfAborted();
      const frame = tensorAt(metadata, range.fileOffset);
      const { name } = frame;
      ++copied;
      if (failAt !== undefined && (failAt === name || (typeof failAt === 'number' && copied >= failAt))) {
        throw new FastSafetensorsError('IO_ERROR', `${path}: the mock copier was told to fail at tensor "${name}"`, {
          path,
          tensor: name,
        });
      }
      const given = tensors.get(name);
      if (!given) file ??= await readFile(path);
      await destination.write(
        range.destOffset,
        given ? bytesOf(metadata, frame, given, range) : slice(path, file!, range),
      );
    }
  };

  return () => (metadata) => ({
    submitIo(request: CopyRequest): Promise<void> {
      const pending = copy(metadata, request);
      pending.catch(() => {}); // waitIo tells
      return pending;
    },
    waitIo: (pending) => pending as Promise<void>,
    close: async () => {},
  });
}

function tensorAt(metadata: SafeTensorsMetadata, fileOffset: number): TensorFrame {
  const offset = fileOffset - metadata.dataStart;
  for (const frame of metadata) {
    const [begin, end] = frame.dataOffsets;
    if (offset >= begin && offset < end) return frame;
  }
  throw new FastSafetensorsError('INVALID_OFFSET', `${metadata.path}: no tensor has a byte at offset ${fileOffset}`, {
    path: metadata.path,
  });
}

/** The part of a tensor's given bytes that a range asks for. */
function bytesOf(
  { dataStart }: SafeTensorsMetadata,
  { name, byteLength, dataOffsets }: TensorFrame,
  given: ArrayBufferView,
  { fileOffset, length }: CopyRange,
): Uint8Array {
  if (given.byteLength !== byteLength) {
    throw new FastSafetensorsError(
      'INVALID_ARGUMENT',
      `mockCopier: tensor "${name}" has ${byteLength} bytes, ${given.byteLength} were given`,
      { tensor: name },
    );
  }
  return new Uint8Array(given.buffer, given.byteOffset + fileOffset - dataStart - dataOffsets[0], length);
}

function slice(path: string, file: Uint8Array, { fileOffset, length }: CopyRange): Uint8Array {
  if (fileOffset + length > file.byteLength) {
    throw new FastSafetensorsError(
      'UNEXPECTED_EOF',
      `${path} ends at byte ${file.byteLength}, expected bytes up to ${fileOffset + length}`,
      { path },
    );
  }
  return file.subarray(fileOffset, fileOffset + length);
}

function delay(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', abort);
      resolve();
    }, ms);
    const abort = (): void => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
  });
}
