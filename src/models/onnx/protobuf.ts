import { Reader, Writer } from 'protobufjs/minimal';
import { type ErrorCode, FastSafetensorsError } from '../../base/errors.js';

/** Wire types of the protobuf encoding (protobuf.dev/programming-guides/encoding). */
const VARINT = 0;
const LEN = 2;

/** One record of a message. `record` is tag and value as in the file, `body` the value without its length. */
interface Field {
  readonly id: number;
  readonly wireType: number;
  readonly record: Uint8Array;
  readonly body: Uint8Array;
  child?: Message;
}

/**
 * A protobuf message as the list of its records. What is not edited is encoded byte for byte as it was: unknown fields,
 * their order, and encodings that another writer would choose differently. Children are parsed when they are asked for.
 * Bytes are views of the given buffer, never copies.
 */
export class Message {
  private readonly source: Uint8Array;
  private readonly where: Where;
  private fields: Field[];
  private edited = false;

  /**
   * Parses one level. Errors name `path`, the file, and `trail`, the field numbers from its root to this message.
   * UNEXPECTED_EOF for a message that is cut short, INVALID_ARGUMENT for what is not protobuf.
   */
  constructor(source: Uint8Array = new Uint8Array(0), path = 'new message', trail = '') {
    this.source = source;
    this.where = { path, trail };
    this.fields = parseFields(source, this.where);
  }

  /** The sub-messages of a field, in order. Edits to them become part of this message. */
  children(id: number): Message[] {
    return this.lenFields(id, 'a message').map((field) => {
      field.child ??= new Message(field.body, this.where.path, `${this.where.trail}.${id}`);
      return field.child;
    });
  }

  /** The sub-message of a field. A second one would have to be merged and is refused. */
  child(id: number): Message | undefined {
    const all = this.children(id);
    if (all.length > 1) throw this.malformed(`field ${id} occurs ${all.length} times, expected once`);
    return all[0];
  }

  /** The values of a field of bytes, strings or sub-messages. */
  bytes(id: number): Uint8Array[] {
    return this.lenFields(id, 'bytes').map((field) => field.child?.encode() ?? field.body);
  }

  /** The values of a field of strings. */
  strings(id: number): string[] {
    return this.bytes(id).map((body) => Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString('utf8'));
  }

  /** The last value, which is the valid one in protobuf; '' when absent. */
  string(id: number): string {
    return this.strings(id).at(-1) ?? '';
  }

  /** The values of an integer field, packed or not, as signed numbers that are exact up to 2^53. */
  integers(id: number): number[] {
    const words = this.words(id);
    return Array.from({ length: words.length / 2 }, (_, i) => (words[2 * i + 1]! | 0) * 2 ** 32 + words[2 * i]!);
  }

  /** The values of an integer field, packed or not: for each the low and the high word of its 64 bits. */
  words(id: number): Uint32Array<ArrayBuffer> {
    const bodies = this.fields.flatMap(({ id: own, wireType, body }) => {
      if (own !== id) return [];
      if (wireType === VARINT || wireType === LEN) return [body];
      throw this.malformed(`field ${id} has wire type ${wireType}, expected an integer (0) or packed integers (2)`);
    });
    let count = 0;
    for (const body of bodies) for (const byte of body) if (byte < 0x80) ++count;
    const words = new Uint32Array(2 * count);
    let at = 0;
    for (const body of bodies) at = this.readVarints(id, body, words, at);
    return words;
  }

  /** The last value; undefined when absent. */
  integer(id: number): number | undefined {
    return this.integers(id).at(-1);
  }

  /** The values of a bytes, fixed32 or fixed64 field, packed or not, concatenated. A single one is not copied. */
  joined(id: number): Uint8Array {
    const bodies = this.fields.filter((field) => field.id === id).map((field) => field.body);
    return bodies.length === 1 ? bodies[0]! : Buffer.concat(bodies);
  }

  has(id: number): boolean {
    return this.fields.some((field) => field.id === id);
  }

  /** Removes every record of these fields. */
  remove(...ids: number[]): void {
    this.keep((field) => !ids.includes(field.id));
  }

  /** Removes sub-messages that `children` returned. */
  removeChildren(children: ReadonlySet<Message>): void {
    if (children.size > 0) this.keep(({ child }) => child === undefined || !children.has(child));
  }

  addBytes(id: number, body: Uint8Array | string): void {
    this.add(lenField(id, body));
  }

  addInteger(id: number, value: number): void {
    const tag = Writer.create()
      .uint32((id << 3) | VARINT)
      .finish();
    const body = Writer.create().int64(value).finish();
    this.add({ id, wireType: VARINT, record: Buffer.concat([tag, body]), body });
  }

  addMessage(id: number, child: Message): void {
    this.addBytes(id, child.encode());
  }

  /** Replaces each string of a field by what `rename` returns. Positions among other fields stay. */
  mapStrings(id: number, rename: (value: string) => string): void {
    this.fields = this.fields.map((field) => {
      if (field.id !== id) return field;
      const before = Buffer.from(field.body).toString('utf8');
      const after = rename(before);
      if (after === before) return field;
      this.edited = true;
      return lenField(id, after);
    });
  }

  get changed(): boolean {
    return this.edited || this.fields.some((field) => field.child?.changed);
  }

  /** The message's bytes; those it was parsed from if nothing was edited. */
  encode(): Uint8Array {
    if (!this.changed) return this.source;
    return Buffer.concat(
      this.fields.flatMap((field) => {
        if (!field.child?.changed) return [field.record];
        return [lenField(field.id, field.child.encode()).record];
      }),
    );
  }

  /** Decodes varints, 7 bits a byte and at most 10 bytes, into pairs of words from `at` on. Returns where it ended. */
  private readVarints(id: number, body: Uint8Array, words: Uint32Array, at: number): number {
    for (let i = 0; i < body.length; at += 2) {
      let low = 0;
      let high = 0;
      for (let shift = 0; ; shift += 7, ++i) {
        if (i === body.length || shift > 63) throw this.malformed(`field ${id} holds a broken integer`);
        const bits = body[i]! & 0x7f;
        if (shift < 28) low |= bits << shift;
        else if (shift === 28) {
          low |= bits << 28;
          high = bits >>> 4;
        } else high |= bits << (shift - 32);
        if (body[i]! < 0x80) break;
      }
      ++i;
      words[at] = low;
      words[at + 1] = high;
    }
    return at;
  }

  private lenFields(id: number, expected: string): Field[] {
    const fields = this.fields.filter((field) => field.id === id);
    const wrong = fields.find(({ wireType }) => wireType !== LEN);
    if (wrong) throw this.malformed(`field ${id} has wire type ${wrong.wireType}, expected ${expected} (2)`);
    return fields;
  }

  private add(field: Field): void {
    this.fields.push(field);
    this.edited = true;
  }

  private keep(which: (field: Field) => boolean): void {
    const kept = this.fields.filter(which);
    if (kept.length !== this.fields.length) this.edited = true;
    this.fields = kept;
  }

  private malformed(what: string): FastSafetensorsError {
    return malformed('INVALID_ARGUMENT', this.where, what);
  }
}

/** The file, and the field numbers from its root to a message, each after a dot. */
interface Where {
  readonly path: string;
  readonly trail: string;
}

function lenField(id: number, value: Uint8Array | string): Field {
  const body = typeof value === 'string' ? Buffer.from(value, 'utf8') : value;
  const head = Writer.create()
    .uint32((id << 3) | LEN)
    .uint32(body.length)
    .finish();
  return { id, wireType: LEN, record: Buffer.concat([head, body]), body };
}

function parseFields(source: Uint8Array, where: Where): Field[] {
  // Not a Buffer: protobufjs would hand out Buffers, whose slice() differs from that of typed arrays.
  const view = new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  const reader = Reader.create(view);
  const fields: Field[] = [];
  while (reader.pos < reader.len) {
    const start = reader.pos;
    try {
      const tag = reader.tag();
      const id = tag >>> 3;
      const wireType = tag & 7;
      if (id === 0) throw new Error('field number 0');
      const from = reader.pos;
      const body = wireType === LEN ? reader.bytes() : reader.skipType(wireType, 0, id).raw(from, reader.pos);
      fields.push({ id, wireType, record: reader.raw(start, reader.pos), body });
    } catch (cause) {
      const at = `the record at byte ${start} of ${view.length} is broken (${(cause as Error).message})`;
      if (cause instanceof RangeError)
        throw malformed('UNEXPECTED_EOF', where, `${at}; the file is cut short, or no ONNX model`, cause);
      throw malformed('INVALID_ARGUMENT', where, at, cause);
    }
  }
  return fields;
}

function malformed(code: ErrorCode, { path, trail }: Where, what: string, cause?: unknown): FastSafetensorsError {
  const place = trail === '' ? 'its root' : `message ${trail.slice(1)}`;
  return new FastSafetensorsError(code, `${path}: expected an ONNX model, but in ${place} ${what}`, { path, cause });
}
