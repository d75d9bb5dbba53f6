/** The encoding of protobuf (protobuf.dev/programming-guides/encoding): tags, varints, and how far a record goes. */

export const VARINT = 0;
const FIXED64 = 1;
export const LEN = 2;
const GROUP = 3;
const END_GROUP = 4;
const FIXED32 = 5;

/** As protobuf's own parsers limit it: groups in groups would end the stack. */
const MAX_DEPTH = 100;

/** Reads records one after the other. RangeError where the bytes end too early, Error for what is not protobuf. */
export class WireReader {
  pos = 0;
  /** Where what is read ends. */
  end: number;

  constructor(private readonly bytes: Uint8Array) {
    this.end = bytes.length;
  }

  /** A tag or a length: the lower 32 bits of a varint. */
  uint32(): number {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (this.pos >= this.end) throw this.outOfRange(1);
      const byte = this.bytes[this.pos++]!;
      if (shift < 32) value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value >>> 0;
    }
    throw new Error('a varint of more than 10 bytes');
  }

  skip(length: number): void {
    if (length > this.end - this.pos) throw this.outOfRange(length);
    this.pos += length;
  }

  /** Skips the value after a tag. */
  skipValue(wireType: number, id: number, depth = 0): void {
    switch (wireType) {
      case VARINT:
        this.uint32();
        break;
      case FIXED64:
        this.skip(8);
        break;
      case LEN:
        this.skip(this.uint32());
        break;
      case GROUP:
        this.skipGroup(id, depth);
        break;
      case FIXED32:
        this.skip(4);
        break;
      default:
        throw new Error(`invalid wire type ${wireType} at offset ${this.pos}`);
    }
  }

  private skipGroup(id: number, depth: number): void {
    if (depth >= MAX_DEPTH) throw new Error(`groups nested more than ${MAX_DEPTH} deep`);
    for (;;) {
      const tag = this.uint32();
      if ((tag & 7) === END_GROUP) {
        if (tag >>> 3 !== id) throw new Error(`the end of group ${tag >>> 3} in group ${id}`);
        return;
      }
      this.skipValue(tag & 7, tag >>> 3, depth + 1);
    }
  }

  private outOfRange(length: number): RangeError {
    return new RangeError(`index out of range: ${this.pos} + ${length} > ${this.end}`);
  }
}

/** Bytes of an integer as a varint; a negative one has 64 bits. */
export function varintLength(value: number): number {
  if (value < 0) return 10;
  let length = 1;
  for (let left = value; left >= 0x80; left = Math.floor(left / 0x80)) ++length;
  return length;
}

/** Returns where it ended. */
export function writeVarint(target: Buffer, at: number, value: number): number {
  if (value < 0) {
    let left = BigInt.asUintN(64, BigInt(value));
    for (; left >= 0x80n; left >>= 7n) target[at++] = Number(left & 0x7fn) | 0x80;
    target[at++] = Number(left);
    return at;
  }
  let left = value;
  for (; left >= 0x80; left = Math.floor(left / 0x80)) target[at++] = (left % 0x80) | 0x80;
  target[at++] = left;
  return at;
}
