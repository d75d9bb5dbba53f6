/** The headers of files that are written. */
import * as check from '../base/checks.js';
import type { DTypeName } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { isWellFormed, type SavePlace, shown } from './save-tensors.js';
import { SUMS_KEY } from './sums.js';

/** Texts by name. */
export type SaveMetadata = Readonly<Record<string, string>> | ReadonlyMap<string, string>;

/** What a header says of a tensor, which begins where the last one ends. */
export interface HeaderEntry {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly byteLength: number;
}

const MAX_HEADER_LENGTH = 100_000_000;

/** The option `metadata`. INVALID_ARGUMENT. */
export function checkMetadata(metadata: SaveMetadata | undefined, by: string): [string, string][] | undefined {
  if (metadata === undefined) return undefined;
  const entries = check.entriesOf<string, string>(metadata, 'metadata', 'an object or a Map of strings');
  for (const [key, value] of entries) {
    if (typeof key !== 'string' || typeof value !== 'string') {
      throw new InvalidArgumentError(`${by}: metadata ${shown(key)} is ${typeof value}, expected a string`);
    }
    if (!isWellFormed(key) || !isWellFormed(value)) {
      throw new InvalidArgumentError(`${by}: metadata ${shown(key)} has a lone surrogate, which UTF-8 cannot hold`);
    }
  }
  return entries.filter(([key]) => key !== SUMS_KEY); // of the file that they were read from
}

/**
 * The 8 bytes of the length, and the text, padded with spaces to a multiple of 8, or to `bytes` in all where that is
 * more. Entries are in the order of their data. HEADER_TOO_LARGE.
 */
export function encodeHeader(
  items: Iterable<HeaderEntry>,
  metadata: [string, string][] | undefined,
  place: SavePlace,
  bytes = 0,
): Uint8Array {
  const parts: string[] = [];
  let characters = 0; // counted so far: no string is built that could not be written
  const add = (text: string, list: string[]): void => {
    characters += text.length + 1;
    if (characters > MAX_HEADER_LENGTH) throw tooLarge(place);
    list.push(text);
  };
  if (metadata) {
    const members: string[] = [];
    for (const [key, value] of metadata) add(`${quote(key, place)}:${quote(value, place)}`, members);
    parts.push(`"__metadata__":{${members.join(',')}}`);
  }
  let begin = 0;
  for (const { name, dtype, shape, byteLength } of items) {
    const end = begin + byteLength;
    const entry = `{"dtype":"${dtype}","shape":[${shape.join(',')}],"data_offsets":[${begin},${end}]}`;
    add(`${quote(name, place)}:${entry}`, parts);
    begin = end;
  }
  const text = `{${parts.join(',')}}`;
  const padded = Math.max(Math.ceil(Buffer.byteLength(text) / 8) * 8, bytes - 8);
  if (padded > MAX_HEADER_LENGTH) throw tooLarge(place, String(padded));
  const header = Buffer.alloc(8 + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded), 0);
  header.write(text, 8);
  return header;
}

/** A text as JSON. HEADER_TOO_LARGE when that is too long for a header, or with its escapes even for a string. */
function quote(text: string, place: SavePlace): string {
  if (text.length <= MAX_HEADER_LENGTH) {
    try {
      const quoted = JSON.stringify(text);
      if (quoted.length <= MAX_HEADER_LENGTH) return quoted;
    } catch {
      // longer than a string can be
    }
  }
  throw tooLarge(place);
}

function tooLarge({ by, path }: SavePlace, bytes = `more than ${MAX_HEADER_LENGTH}`): FastSafetensorsError {
  const most = `expected at most ${MAX_HEADER_LENGTH}; write several files`;
  return new FastSafetensorsError('HEADER_TOO_LARGE', `${by}: the header takes ${bytes} bytes, ${most}`, { path });
}
