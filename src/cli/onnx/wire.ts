import { Reader, Writer } from 'protobufjs/minimal';
import { FastSafetensorsError } from '../../errors.js';

/** Wire types of the protobuf encoding (protobuf.dev/programming-guides/encoding). */
const VARINT = 0;
const LEN = 2;

/** One record of a message. `record` is tag and value as they stand in the file, `body` the value without a length prefix. */
interface Field {
  readonly id: number;
  readonly wireType: number;
  readonly record: Uint8Array;
  readonly body: Uint8Array;
  child?: Message;
}

/**
 * A protobuf message as the list of its records. What is not edited is written back byte for byte: fields that this program
 * does not know, their order, and encodings that another writer would choose differently. Children are parsed when asked for.
 * Bytes are views of the buffer given, never copies.
 */
export class Message {
  private readonly source: Uint8Array;
  private readonly where: string;
  private fields: Field[];
  private edited = false;

  /** Parses one level. `where` names the message in errors. Throws UNEXPECTED_EOF (cut short) or INVALID_ARGUMENT (not protobuf). */
  constructor(source: Uint8Array = new Uint8Array(0), where = 'new message') {
    this.source = source;
    this.where = where;
    this.fields = parseFields(source, where);
  }

  /** The sub-messages with this field number, in order. Edits to them become part of this message. */
  children(id: number): Message[] {
    return this.fields
      .filter((field) => field.id === id)
      .map((field) => {
        if (field.wireType !== LEN)
          throw this.malformed(`field ${id} has wire type ${field.wireType}, expected a message (2)`);
        field.child ??= new Message(field.body, `${this.where}.${id}`);
        return field.child;
      });
  }

  /** The sub-message with this field number; a second one would have to be merged and is refused. */
  child(id: number): Message | undefined {
    const all = this.children(id);
    if (all.length > 1) throw this.malformed(`field ${id} occurs ${all.length} times, expected once`);
    return all[0];
  }

  /** Values of a bytes, string or sub-message field. */
  bytes(id: number): Uint8Array[] {
    return this.fields
      .filter((field) => field.id === id)
      .map((field) => {
        if (field.wireType !== LEN)
          throw this.malformed(`field ${id} has wire type ${field.wireType}, expected bytes (2)`);
        return field.child?.encode() ?? field.body;
      });
  }

  strings(id: number): string[] {
    return this.bytes(id).map((body) => Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString('utf8'));
  }

  /** The last value wins, as protobuf has it; '' when absent. */
  string(id: number): string {
    return this.strings(id).at(-1) ?? '';
  }

  /** Values of an integer field, packed or not, as signed numbers (exact up to 2^53). */
  integers(id: number): number[] {
    const values: number[] = [];
    for (const { body, wireType } of this.fields.filter((field) => field.id === id)) {
      if (wireType !== VARINT && wireType !== LEN) {
        throw this.malformed(`field ${id} has wire type ${wireType}, expected an integer (0) or packed integers (2)`);
      }
      const reader = Reader.create(body);
      try {
        while (reader.pos < reader.len) values.push(Number(reader.int64()));
      } catch (cause) {
        throw this.malformed(`field ${id} holds a broken integer (${(cause as Error).message})`);
      }
    }
    return values;
  }

  /** The last value wins; undefined when absent. */
  integer(id: number): number | undefined {
    return this.integers(id).at(-1);
  }

  /** Bodies of a fixed32, fixed64 (packed or not) or bytes field, put together. A single record is not copied. */
  joined(id: number): Uint8Array {
    const bodies = this.fields.filter((field) => field.id === id).map((field) => field.body);
    return bodies.length === 1 ? bodies[0]! : Buffer.concat(bodies);
  }

  has(id: number): boolean {
    return this.fields.some((field) => field.id === id);
  }

  /** Removes every record of these field numbers. */
  remove(...ids: number[]): void {
    this.keep((field) => !ids.includes(field.id));
  }

  /** Removes one sub-message that `children` returned. */
  removeChild(child: Message): void {
    this.keep((field) => field.child !== child);
  }

  addBytes(id: number, body: Uint8Array | string): void {
    const bytes = typeof body === 'string' ? Buffer.from(body, 'utf8') : body;
    this.add(
      Writer.create()
        .uint32((id << 3) | LEN)
        .bytes(bytes)
        .finish(),
    );
  }

  addInteger(id: number, value: number): void {
    this.add(
      Writer.create()
        .uint32((id << 3) | VARINT)
        .int64(value)
        .finish(),
    );
  }

  addMessage(id: number, child: Message): void {
    this.addBytes(id, child.encode());
  }

  /** Replaces the strings of a field one by one where `rename` answers another. Positions among other fields stay. */
  mapStrings(id: number, rename: (value: string) => string): void {
    this.fields = this.fields.map((field) => {
      if (field.id !== id) return field;
      const before = Buffer.from(field.body).toString('utf8');
      const after = rename(before);
      if (after === before) return field;
      this.edited = true;
      return parseFields(
        Writer.create()
          .uint32((id << 3) | LEN)
          .string(after)
          .finish(),
        this.where,
      )[0]!;
    });
  }

  get changed(): boolean {
    return this.edited || this.fields.some((field) => field.child?.changed);
  }

  /** The message's bytes; the very ones it was parsed from when nothing was edited. */
  encode(): Uint8Array {
    if (!this.changed) return this.source;
    return Buffer.concat(
      this.fields.flatMap((field) => {
        if (!field.child?.changed) return [field.record];
        const body = field.child.encode();
        return [
          Writer.create()
            .uint32((field.id << 3) | LEN)
            .uint32(body.length)
            .finish(),
          body,
        ];
      }),
    );
  }

  private add(record: Uint8Array): void {
    this.fields.push(...parseFields(record, this.where));
    this.edited = true;
  }

  private keep(which: (field: Field) => boolean): void {
    const kept = this.fields.filter(which);
    if (kept.length !== this.fields.length) this.edited = true;
    this.fields = kept;
  }

  private malformed(what: string): FastSafetensorsError {
    return new FastSafetensorsError('INVALID_ARGUMENT', `not a valid ONNX model: ${this.where}: ${what}`);
  }
}

function parseFields(source: Uint8Array, where: string): Field[] {
  // A plain view, not a Buffer: protobufjs' reader for Buffers treats some values specially.
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
      const cut = cause instanceof RangeError;
      throw new FastSafetensorsError(
        cut ? 'UNEXPECTED_EOF' : 'INVALID_ARGUMENT',
        `not a valid ONNX model: ${where}: ${(cause as Error).message} at byte ${start} of ${view.length}${cut ? '; the file is cut short or no protobuf' : ''}`,
        { cause },
      );
    }
  }
  return fields;
}
