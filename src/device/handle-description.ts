/**
 * What a process tells another of memory that it exports: a text in the form of a .safetensors header, so that the same
 * checks hold for it. Only names, dtypes, shapes and lengths are told; where tensors lie follows from that.
 */
import { fail, integer } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { native, settled } from '../native/addon.js';
import { SafeTensorsMetadata, unpackHeader } from '../safetensors/metadata.js';
import { encodeHeader, type HeaderEntry } from '../safetensors/save-header.js';

const FORMAT = 'fastsafetensors-node handle';
const VERSION = '1';
/** Tensors lie at multiples of it, as those of a load do. */
const ALIGNMENT = 256;
/** Bytes at the end of the memory, which tell that a description is its: a text of as many hexadecimal digits. */
const SEAL_BYTES = 32;

/** What another process tells of its memory: see exportHandle(). */
export interface TensorHandle {
  /** A descriptor of this process for the memory: inherited, received, or opened at /proc/<pid>/fd. */
  readonly fd: number;
  readonly description: string;
}

/** INVALID_ARGUMENT for what is no handle; what stands in it is not looked at. */
export function checkHandle(handle: TensorHandle, name: string, expected: string): TensorHandle {
  if (typeof handle !== 'object' || handle === null) fail(name, expected, handle);
  const { fd, description } = handle;
  integer(0, 2 ** 31 - 1)(fd, 'fd');
  if (typeof description !== 'string') fail('description', 'the text that exportHandle() gave', description);
  return { fd, description };
}

/** What is said of the memory as a whole. */
export interface HandleFacts {
  readonly device: string;
  /** Which GPU, on its PCI bus; '' for the host. */
  readonly busId: string;
  readonly size: number;
  readonly seal: string;
}

/** A description that was checked: tensors lie in the order of the header, at `offsets`. */
export interface ParsedHandle extends HandleFacts {
  readonly header: SafeTensorsMetadata;
  readonly offsets: Float64Array;
}

/** Where tensors lie in the memory, one after the other, and its size. */
export class HandleLayout {
  #end = 0;

  place(byteLength: number): number {
    const offset = Math.ceil(this.#end / ALIGNMENT) * ALIGNMENT;
    this.#end = offset + byteLength;
    return offset;
  }

  get size(): number {
    return Math.ceil(this.#end / ALIGNMENT) * ALIGNMENT + SEAL_BYTES;
  }
}

/** HEADER_TOO_LARGE. */
export function describeHandle(tensors: Iterable<HeaderEntry>, { device, busId, size, seal }: HandleFacts): string {
  const facts: [string, string][] = [
    ['format', FORMAT],
    ['version', VERSION],
    ['device', device],
    ['busId', busId],
    ['size', String(size)],
    ['seal', seal],
  ];
  const bytes = encodeHeader(tensors, facts, { by: 'exportHandle', path: '' });
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8', 8).trimEnd();
}

/**
 * Of a text that anybody may have written. INVALID_HEADER for what is none of this version; as
 * SafeTensorsMetadata.fromFile for its form and its tensors; METADATA_INCOMPLETE_BUFFER for a size that is not theirs.
 */
export async function parseHandle(description: string): Promise<ParsedHandle> {
  const header = await SafeTensorsMetadata.fromNative(await parsed(description), '', { byName: false });
  const fact = (name: string): string => header.metadata.get(name) ?? '';
  if (fact('format') !== FORMAT || fact('version') !== VERSION) {
    const found = `format ${JSON.stringify(fact('format'))}, version ${JSON.stringify(fact('version'))}`;
    const message = `the description of a handle: expected format "${FORMAT}", version "${VERSION}", found ${found}`;
    throw new FastSafetensorsError('INVALID_HEADER', `${message}; use the same version of the package on both sides`);
  }
  const seal = fact('seal');
  if (!new RegExp(`^[0-9a-f]{${SEAL_BYTES}}$`).test(seal))
    throw new FastSafetensorsError('INVALID_HEADER', 'the description of a handle has no seal');
  const layout = new HandleLayout();
  const offsets = new Float64Array(header.tensorCount);
  const { begins, ends } = header.packed;
  const turns = new Turns();
  for (let i = 0; i < offsets.length; ++i) {
    offsets[i] = layout.place(ends[i]! - begins[i]!);
    if (turns.due()) await turns.take();
  }
  const { size } = layout;
  if (!Number.isSafeInteger(size) || fact('size') !== String(size)) {
    const message = `the description of a handle says ${fact('size').slice(0, 40)} bytes, its tensors take ${size}`;
    throw new FastSafetensorsError('METADATA_INCOMPLETE_BUFFER', message);
  }
  return { header, offsets, device: fact('device'), busId: fact('busId'), size, seal };
}

async function parsed(description: string) {
  try {
    return unpackHeader(await settled(native().parseDescription(description)));
  } catch (error) {
    if (!(error instanceof FastSafetensorsError)) throw error;
    const { code, message, tensor, offset } = error;
    throw new FastSafetensorsError(code, `the description of a handle: ${message}`, { tensor, offset });
  }
}
