import { type ErrorCode, FastSafetensorsError } from '../../base/errors.js';
import { LEN, VARINT, varintLength, WireReader, writeVarint } from './wire.js';

type Value = Uint8Array | string | number | Message;

/**
 * One record of a message, parsed or added. A model may have millions: they keep places in the file in place of views
 * of it, and are linked, since arrays have room to spare.
 */
interface Field {
  readonly id: number;
  readonly wireType: number;
  /** Where the record, and in it the value, begin, and where both end in the source; `start` is -1 for an added one. */
  start: number;
  readonly body: number;
  readonly end: number;
  /** Of an added one; and the sub-message of a parsed one, once it was asked for. */
  value: Value | undefined;
  next: Field | undefined;
}

/** The bytes of a file, its path for messages, and what reads them. */
interface Source {
  readonly bytes: Buffer;
  readonly path: string;
  readonly reader: WireReader;
}

/**
 * A protobuf message as the list of its records. What is not edited is encoded byte for byte as it was: unknown fields,
 * their order, and encodings that another writer would choose differently. Children are parsed when they are asked for.
 * Bytes are views of the given buffer, never copies.
 */
export class Message {
  private readonly source: Source;
  /** What it is in `parent`, or the whole of its source. */
  private readonly field: Field;
  private parent: Message | undefined;
  private first: Field | undefined;
  private last: Field | undefined;
  /** Whether it, or something in it, differs from its source. */
  private edited = false;
  /** Whether removeChildren() is removing it. */
  private leaving = false;
  /** Its bytes, from measure() until they are written. */
  private length = 0;

  /**
   * Parses one level; without a source it is empty. Errors name `path`, the file, and the field numbers from its root
   * to this message. UNEXPECTED_EOF for a message that is cut short, INVALID_ARGUMENT for what is not protobuf.
   */
  constructor(source?: Uint8Array, path = 'new message', within?: Message, field?: Field) {
    this.source = within?.source ?? (source ? sourceOf(source, path) : NOTHING);
    this.field = field ?? fieldOf(0, LEN, 0, 0, this.source.bytes.length, undefined);
    this.parent = within;
    if (this.field.body < this.field.end) this.parse();
  }

  /** The sub-messages of a field, in order. Edits to them become part of this message. */
  children(id: number): Message[] {
    const children: Message[] = [];
    for (let field = this.first; field; field = field.next) if (field.id === id) children.push(this.childOf(field));
    return children;
  }

  /** The sub-message of a field. A second one would have to be merged and is refused. */
  child(id: number): Message | undefined {
    const fields = this.all(id);
    if (fields.length > 1) throw this.malformed(`field ${id} occurs ${fields.length} times, expected once`);
    return fields[0] && this.childOf(fields[0]);
  }

  /** Passes on each sub-message of a field, to be read. Those are not kept: there may be very many. */
  eachIn(id: number, read: (child: Message) => void): void {
    for (let field = this.first; field; field = field.next) if (field.id === id) read(this.peek(field));
  }

  /** The string `inner` of each sub-message of a field. */
  stringsIn(id: number, inner: number): string[] {
    const strings: string[] = [];
    this.eachIn(id, (child) => strings.push(child.string(inner)));
    return strings;
  }

  /** The values of a field of bytes, strings or sub-messages. */
  bytes(id: number): Uint8Array[] {
    return this.all(id).map((field) => this.bytesOf(field, 'bytes'));
  }

  /** The values of a field of strings. */
  strings(id: number): string[] {
    const strings: string[] = [];
    for (let field = this.first; field; field = field.next) if (field.id === id) strings.push(this.stringOf(field));
    return strings;
  }

  /** The last value, which is the valid one in protobuf; '' when absent. */
  string(id: number): string {
    const field = this.find(id);
    return field ? this.stringOf(field) : '';
  }

  /** The values of an integer field, packed or not, as signed numbers that are exact up to 2^53. */
  integers(id: number): number[] {
    const integers: number[] = [];
    this.eachInteger(id, (low, high) => integers.push((high | 0) * 2 ** 32 + (low >>> 0)));
    return integers;
  }

  /** The last value; undefined when absent. */
  integer(id: number): number | undefined {
    return this.integers(id).at(-1);
  }

  /** The values of an integer field, packed or not: for each the low and the high word of its 64 bits. */
  words(id: number): Uint32Array<ArrayBuffer> {
    let count = 0;
    this.eachInteger(id, () => ++count);
    const words = new Uint32Array(2 * count);
    let at = 0;
    this.eachInteger(id, (low, high) => {
      words[at++] = low;
      words[at++] = high;
    });
    return words;
  }

  /** The values of a bytes, fixed32 or fixed64 field, packed or not, concatenated. A single one is not copied. */
  joined(id: number): Uint8Array {
    const bodies = this.all(id).map((field) => this.bytesOf(field));
    return bodies.length === 1 ? bodies[0]! : Buffer.concat(bodies);
  }

  has(id: number): boolean {
    return this.find(id) !== undefined;
  }

  /** Removes every record of these fields. */
  remove(...ids: number[]): void {
    this.keep((field) => !ids.includes(field.id));
  }

  /** Removes the sub-messages of a field whose string `inner` is one that `leaves`. */
  removeWhere(id: number, inner: number, leaves: (value: string) => boolean): void {
    this.keep((field) => field.id !== id || !leaves(this.peek(field).string(inner)));
  }

  /** Removes sub-messages that `children` returned. */
  removeChildren(children: readonly Message[]): void {
    if (children.length === 0) return;
    for (const child of children) child.leaving = true;
    this.keep(({ value }) => !(value instanceof Message && value.leaving));
    for (const child of children) child.leaving = false;
  }

  addBytes(id: number, value: Uint8Array | string): void {
    this.add(id, LEN, value);
  }

  addInteger(id: number, value: number): void {
    this.add(id, VARINT, value);
  }

  /** Later edits of the child become part of this message. */
  addMessage(id: number, child: Message): void {
    this.add(id, LEN, child);
    child.parent = this;
  }

  /** Replaces each string of a field by what `rename` returns. Positions among other fields stay. */
  mapStrings(id: number, rename: (value: string) => string): void {
    for (let field = this.first; field; field = field.next) {
      if (field.id !== id) continue;
      const before = this.stringOf(field);
      const after = rename(before);
      if (after === before) continue;
      field.start = -1;
      field.value = after;
      this.touch();
    }
  }

  /** The message's bytes; those it was parsed from if nothing was edited. */
  encode(): Uint8Array {
    if (!this.edited) return this.source.bytes.subarray(this.field.body, this.field.end);
    const target = Buffer.allocUnsafe(this.measure());
    this.write(target, 0);
    return target;
  }

  private parse(): void {
    const { body: from, end } = this.field;
    const { reader } = this.source;
    reader.pos = from;
    reader.end = end;
    while (reader.pos < end) {
      const start = reader.pos;
      try {
        const tag = reader.uint32();
        const id = tag >>> 3;
        const wireType = tag & 7;
        if (id === 0) throw new Error('field number 0');
        const length = wireType === LEN ? reader.uint32() : 0;
        const body = reader.pos;
        if (wireType === LEN) reader.skip(length);
        else reader.skipValue(wireType, id);
        this.append(fieldOf(id, wireType, start, body, reader.pos, undefined));
      } catch (cause) {
        const where = `the record at byte ${start - from} of ${end - from} is broken (${(cause as Error).message})`;
        if (cause instanceof RangeError)
          throw this.malformed(`${where}; the file is cut short, or no ONNX model`, 'UNEXPECTED_EOF', cause);
        throw this.malformed(where, 'INVALID_ARGUMENT', cause);
      }
    }
  }

  /** Passes on the words of each integer. A varint has 7 bits in a byte, the lowest first, and at most 10 bytes. */
  private eachInteger(id: number, use: (low: number, high: number) => void): void {
    const { bytes } = this.source;
    for (let field = this.first; field; field = field.next) {
      if (field.id !== id) continue;
      const { wireType, start, body, end } = field;
      if (wireType !== VARINT && wireType !== LEN)
        throw this.malformed(`field ${id} has wire type ${wireType}, expected an integer (0) or packed integers (2)`);
      if (start < 0) use(field.value as number, Math.floor((field.value as number) / 2 ** 32));
      for (let at = body; start >= 0 && at < end; ) {
        let low = 0;
        let high = 0;
        let byte = 0x80;
        for (let shift = 0; byte >= 0x80; shift += 7) {
          if (at === end || shift > 63) throw this.malformed(`field ${id} holds a broken integer`);
          byte = bytes[at++]!;
          if (shift <= 28) low |= (byte & 0x7f) << shift;
          if (shift === 28) high = (byte & 0x7f) >>> 4;
          if (shift > 28) high |= (byte & 0x7f) << (shift - 32);
        }
        use(low, high);
      }
    }
  }

  private all(id: number): Field[] {
    const fields: Field[] = [];
    for (let field = this.first; field; field = field.next) if (field.id === id) fields.push(field);
    return fields;
  }

  /** The last one. */
  private find(id: number): Field | undefined {
    let found: Field | undefined;
    for (let field = this.first; field; field = field.next) if (field.id === id) found = field;
    return found;
  }

  private childOf(field: Field): Message {
    if (field.value instanceof Message) return field.value;
    this.checkLen(field, 'a message');
    let child: Message;
    if (field.start >= 0) {
      child = new Message(undefined, '', this, field);
    } else {
      child = new Message(this.bytesOf(field), this.source.path);
      child.parent = this;
    }
    field.value = child;
    return child;
  }

  private peek(field: Field): Message {
    const isKept = field.start < 0 || field.value instanceof Message;
    return isKept ? this.childOf(field) : new Message(undefined, '', this, field);
  }

  private bytesOf(field: Field, expected?: string): Uint8Array {
    if (expected) this.checkLen(field, expected);
    const { start, body, end, value } = field;
    if (value instanceof Message) return value.encode();
    if (start >= 0) return this.source.bytes.subarray(body, end);
    return typeof value === 'string' ? Buffer.from(value) : (value as Uint8Array);
  }

  private stringOf(field: Field): string {
    this.checkLen(field, 'bytes');
    const { start, body, end, value } = field;
    if (typeof value === 'string') return value;
    if (start >= 0 && value === undefined) return this.source.bytes.toString('utf8', body, end);
    const bytes = this.bytesOf(field);
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
  }

  private checkLen({ id, wireType }: Field, expected: string): void {
    if (wireType !== LEN) throw this.malformed(`field ${id} has wire type ${wireType}, expected ${expected} (2)`);
  }

  private add(id: number, wireType: number, value: Value): void {
    this.append(fieldOf(id, wireType, -1, -1, -1, value));
    this.touch();
  }

  private append(field: Field): void {
    if (this.last) this.last.next = field;
    else this.first = field;
    this.last = field;
  }

  private keep(which: (field: Field) => boolean): void {
    let field = this.first;
    this.first = undefined;
    this.last = undefined;
    while (field) {
      const { next } = field;
      field.next = undefined;
      if (which(field)) this.append(field);
      else this.touch();
      field = next;
    }
  }

  /** Whatever contains it differs from its source, too. */
  private touch(): void {
    if (this.edited) return;
    this.edited = true;
    this.parent?.touch();
  }

  /** Sets `length`, here and in what is to be written anew. */
  private measure(): number {
    this.length = this.edited ? 0 : this.field.end - this.field.body;
    if (!this.edited) return this.length;
    for (let field = this.first; field; field = field.next) {
      const { id, wireType, start, end, value } = field;
      if (this.isAsParsed(field)) this.length += end - start;
      else if (wireType === VARINT) this.length += varintLength(id * 8) + varintLength(value as number);
      else {
        const length = value instanceof Message ? value.measure() : lengthOf(value);
        this.length += varintLength(id * 8) + varintLength(length) + length;
      }
    }
    return this.length;
  }

  /** After measure(). Returns where it ended. */
  private write(target: Buffer, at: number): number {
    const { bytes } = this.source;
    if (!this.edited) return at + bytes.copy(target, at, this.field.body, this.field.end);
    for (let field = this.first; field; field = field.next) {
      const { id, wireType, start, value } = field;
      if (this.isAsParsed(field)) {
        // As many at once as are beside each other.
        while (field.next && this.isAsParsed(field.next) && field.next.start === field.end) field = field.next;
        at += bytes.copy(target, at, start, field.end);
        continue;
      }
      at = writeVarint(target, at, id * 8 + wireType);
      if (wireType === VARINT) {
        at = writeVarint(target, at, value as number);
      } else if (value instanceof Message) {
        at = value.write(target, writeVarint(target, at, value.length));
      } else {
        at = writeVarint(target, at, lengthOf(value));
        if (typeof value === 'string') at += target.write(value, at);
        else {
          target.set(value as Uint8Array, at);
          at += lengthOf(value);
        }
      }
    }
    return at;
  }

  private isAsParsed({ start, value }: Field): boolean {
    return start >= 0 && !(value instanceof Message && value.edited);
  }

  private malformed(what: string, code: ErrorCode = 'INVALID_ARGUMENT', cause?: unknown): FastSafetensorsError {
    const trail: number[] = [];
    for (let message: Message = this; message.parent; message = message.parent) trail.unshift(message.field.id);
    const place = trail.length === 0 ? 'its root' : `message ${trail.join('.')}`;
    const { path } = this.source;
    const message = `${path}: expected an ONNX model, but in ${place} ${what}`;
    return new FastSafetensorsError(code, message, { path, cause });
  }
}

function sourceOf({ buffer, byteOffset, byteLength }: Uint8Array, path: string): Source {
  const bytes = Buffer.from(buffer, byteOffset, byteLength);
  return { bytes, path, reader: new WireReader(bytes) };
}

const NOTHING = sourceOf(new Uint8Array(0), 'new message');

function fieldOf(id: number, wireType: number, start: number, body: number, end: number, value: Field['value']): Field {
  return { id, wireType, start, body, end, value, next: undefined };
}

function lengthOf(value: Field['value']): number {
  return typeof value === 'string' ? Buffer.byteLength(value) : (value as Uint8Array).byteLength;
}
