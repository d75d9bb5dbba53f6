import { readFile } from 'node:fs/promises';
import { setTimeout } from 'node:timers/promises';
import { type Check, checkOptions, entriesOf, fail, notNegative, takesAtMost } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import type { CopierConstructor, CopierFactory, CopyRange, CopyRequest } from '../copiers/copier.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import { dataOf, type MockTensor, mockHeader } from './mock-header.js';

/** What a mock copier delivers, and when it fails. */
export interface MockCopierOptions {
  /**
   * Tensors by name. Of a file that exists: bytes in place of those in the file, each as many as the header says; other
   * tensors come from the file. Of a name that is no file: all the tensors there are, in this order. They stay the
   * caller's and are copied with each load. Default: all come from files.
   */
  tensors?: Readonly<Record<string, MockTensor>> | ReadonlyMap<string, MockTensor>;
  /** Fail with IO_ERROR at this tensor: its name, or its number from 1 in the order of copying; default: never. */
  failAt?: string | number;
  /** Milliseconds that each request takes at least; default: 0. */
  delayMs?: number;
}

const TENSORS = 'typed arrays, or { dtype, shape, data }, by the names of tensors';
const nameOrNumber: Check = (value, name) => {
  if (typeof value !== 'string' && !(Number.isSafeInteger(value) && (value as number) >= 1))
    fail(name, "a tensor's name, or its number from 1", value);
};

/**
 * A copier for tests, without files and GPUs: `registerCopier('mock', mockCopier({ … }))`, then a loader with
 * `copier: 'mock'` and, with `tensors`, `files: 'any name'`. INVALID_ARGUMENT for a wrong option, and from a load whose
 * header disagrees with `tensors`.
 */
export function mockCopier(options: MockCopierOptions = {}): CopierFactory {
  takesAtMost(1, arguments, 'mockCopier');
  checkOptions(options, { tensors: () => {}, failAt: nameOrNumber, delayMs: notNegative });
  const { delayMs = 0, failAt, tensors: given = {} } = options;
  const tensors = new Map<string, MockTensor>(entriesOf(given, 'tensors', TENSORS));
  for (const tensor of tensors.values()) if (!ArrayBuffer.isView(dataOf(tensor))) fail('tensors', TENSORS, tensor);
  let copied = 0; // tensors, of all files

  const copy = async (
    metadata: SafeTensorsMetadata,
    { path, ranges, destination, signal }: CopyRequest,
  ): Promise<void> => {
    if (delayMs > 0) await setTimeout(delayMs, undefined, { signal }).catch(() => signal.throwIfAborted());
    let file: Uint8Array | undefined;
    for (const range of ranges) {
      signal.throwIfAborted();
      const frame = tensorAt(metadata, range.fileOffset);
      const { name } = frame;
      ++copied;
      if (failAt !== undefined && (failAt === name || (typeof failAt === 'number' && copied >= failAt))) {
        const message = `${path}: the mock copier was told to fail at tensor "${name}"`;
        throw new FastSafetensorsError('IO_ERROR', message, { path, tensor: name });
      }
      const given = dataOf(tensors.get(name));
      if (!given) file ??= await readFile(path);
      await destination.write(
        range.destOffset,
        given ? bytesOf(metadata, frame, given, range) : slice(path, file!, range),
      );
    }
  };

  const factory = (): CopierConstructor => (metadata) => ({
    submitIo(request: CopyRequest): Promise<void> {
      const pending = copy(metadata, request);
      pending.catch(() => {}); // waitIo reports it
      return pending;
    },
    waitIo: (pending) => pending as Promise<void>,
    close: async () => {},
  });
  return tensors.size > 0 ? Object.assign(factory, { metadata: () => mockHeader(tensors) }) : factory;
}

function tensorAt(metadata: SafeTensorsMetadata, fileOffset: number): TensorFrame {
  const offset = fileOffset - metadata.dataStart;
  for (const frame of metadata) {
    const [begin, end] = frame.dataOffsets;
    if (offset >= begin && offset < end) return frame;
  }
  const message = `${metadata.path}: no tensor has a byte at offset ${fileOffset}`;
  throw new FastSafetensorsError('INVALID_OFFSET', message, { path: metadata.path });
}

/** The part of a tensor's given bytes that a range asks for. */
function bytesOf(
  { dataStart }: SafeTensorsMetadata,
  { name, byteLength, dataOffsets }: TensorFrame,
  given: ArrayBufferView,
  { fileOffset, length }: CopyRange,
): Uint8Array {
  if (given.byteLength !== byteLength) {
    const message = `mockCopier: tensor "${name}" has ${byteLength} bytes, ${given.byteLength} were given`;
    throw new FastSafetensorsError('INVALID_ARGUMENT', message, { tensor: name });
  }
  return new Uint8Array(given.buffer, given.byteOffset + fileOffset - dataStart - dataOffsets[0], length);
}

function slice(path: string, file: Uint8Array, { fileOffset, length }: CopyRange): Uint8Array {
  if (fileOffset + length > file.byteLength) {
    const message = `${path} ends at byte ${file.byteLength}, expected bytes up to ${fileOffset + length}`;
    throw new FastSafetensorsError('UNEXPECTED_EOF', message, { path });
  }
  return file.subarray(fileOffset, fileOffset + length);
}
