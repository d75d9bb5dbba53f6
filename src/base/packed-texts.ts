/** Many texts in few objects: to make a string of each, and a Map of all, would hold the event loop. */
import { keepExample } from './examples.js';

/** Texts that are decoded together, unless they are longer than so many bytes. */
const BLOCK = 64;
const BLOCK_BYTES = 64 * 1024;

/** Texts that were packed one after the other, into a string or as UTF-8. */
export class PackedTexts {
  static {
    keepExample(new PackedTexts(new Uint8Array(), new Uint32Array()));
  }

  readonly #texts: string | Buffer;
  readonly #ends: Uint32Array;
  #last = -1; // index that was asked for
  #block = -1; // the one that was decoded last
  #decoded = ''; // '' where it is not to be decoded as a whole
  #begin = 0;

  /** `ends`: where each ends, in UTF-16 units of the string, or in bytes. */
  constructor(texts: string | Uint8Array, ends: Uint32Array) {
    this.#texts = typeof texts === 'string' ? texts : Buffer.from(texts.buffer, texts.byteOffset, texts.byteLength);
    this.#ends = ends;
  }

  get length(): number {
    return this.#ends.length;
  }

  at(index: number): string {
    const texts = this.#texts;
    const begin = this.#endOf(index - 1);
    const end = this.#ends[index]!;
    if (typeof texts === 'string') return texts.slice(begin, end);
    const block = Math.floor(index / BLOCK);
    const next = index === this.#last + 1;
    this.#last = index;
    if (block !== this.#block) {
      if (!next) return texts.toString('utf8', begin, end); // a look here and there needs no others
      this.#decode(texts, block);
    }
    if (this.#decoded === '') return texts.toString('utf8', begin, end);
    return this.#decoded.slice(begin - this.#begin, end - this.#begin);
  }

  /** Whether it is this text; most are compared without making a string of it. */
  is(index: number, text: string): boolean {
    const texts = this.#texts;
    const begin = this.#endOf(index - 1);
    const length = this.#ends[index]! - begin;
    if (typeof texts === 'string') return length === text.length && texts.startsWith(text, begin);
    if (length < text.length) return false; // UTF-8 has no fewer bytes than there are UTF-16 units
    for (let i = 0; i < text.length; ++i) {
      const byte = texts[begin + i]!;
      if (byte >= 0x80) return texts.toString('utf8', begin, begin + length) === text;
      if (byte !== text.charCodeAt(i)) return false;
    }
    return length === text.length;
  }

  #endOf(index: number): number {
    return index < 0 ? 0 : this.#ends[index]!;
  }

  #decode(texts: Buffer, block: number): void {
    const begin = this.#endOf(block * BLOCK - 1);
    const end = this.#ends[Math.min((block + 1) * BLOCK, this.length) - 1]!;
    this.#block = block;
    this.#begin = begin;
    this.#decoded = end - begin > BLOCK_BYTES ? '' : texts.toString('utf8', begin, end);
    if (this.#decoded.length !== end - begin) this.#decoded = ''; // not ASCII: ends are not those of the string
  }
}

/** Of this process, so that nobody can write names that all meet in one place. */
const SEED = Math.floor(Math.random() * 2 ** 32);

/** Over UTF-16 units. csrc/safetensors/text_table.cc HashText is the same. */
export function hashText(text: string, seed: number): number {
  let hash = seed;
  for (let i = 0; i < text.length; ++i) hash = Math.imul(hash ^ text.charCodeAt(i), 0x9e3779b1);
  hash ^= hash >>> 16;
  hash = Math.imul(hash, 0x85ebca6b);
  return (hash ^ (hash >>> 13)) >>> 0;
}

/** Finds texts by the slots of csrc/safetensors/text_table.h: each `step`-th of them from the first on. */
export class TextSearch {
  static {
    keepExample(new TextSearch(new PackedTexts('', new Uint32Array()), new Uint32Array(), 0));
  }

  readonly #texts: PackedTexts;
  readonly #slots: Uint32Array;
  readonly #seed: number;
  readonly #step: number;

  constructor(texts: PackedTexts, slots: Uint32Array, seed: number, step = 1) {
    this.#texts = texts;
    this.#slots = slots;
    this.#seed = seed;
    this.#step = step;
  }

  /** The number of a text among those that can be found; -1 for none. */
  find(text: string): number {
    const mask = this.#slots.length - 1;
    for (let at = hashText(text, this.#seed) & mask; ; at = (at + 1) & mask) {
      const found = this.#slots[at]! - 1;
      if (found < 0 || this.#texts.is(found * this.#step, text)) return found;
    }
  }
}

/** A Map from keys to values that were packed in turn, without an object for each. */
export class PackedTextMap implements ReadonlyMap<string, string> {
  readonly #texts: PackedTexts;
  readonly #search: TextSearch;

  constructor(texts: PackedTexts, slots: Uint32Array, seed: number) {
    this.#texts = texts;
    this.#search = new TextSearch(texts, slots, seed, 2);
  }

  get size(): number {
    return this.#texts.length / 2;
  }

  get [Symbol.toStringTag](): string {
    return 'Map';
  }

  has(key: string): boolean {
    return this.#search.find(key) >= 0;
  }

  get(key: string): string | undefined {
    const index = this.#search.find(key);
    return index < 0 ? undefined : this.#texts.at(2 * index + 1);
  }

  *keys(): MapIterator<string> {
    for (let i = 0; i < this.#texts.length; i += 2) yield this.#texts.at(i);
  }

  *values(): MapIterator<string> {
    for (let i = 0; i < this.#texts.length; i += 2) yield this.#texts.at(i + 1);
  }

  *entries(): MapIterator<[string, string]> {
    for (let i = 0; i < this.#texts.length; i += 2) yield [this.#texts.at(i), this.#texts.at(i + 1)];
  }

  [Symbol.iterator](): MapIterator<[string, string]> {
    return this.entries();
  }

  forEach(call: (value: string, key: string, map: ReadonlyMap<string, string>) => void, self?: unknown): void {
    for (const [key, value] of this) call.call(self, value, key, this);
  }
}

/**
 * Finds the numbers of texts that lie elsewhere, in two arrays. A Map would keep each text alive; the garbage collector
 * holds the event loop for milliseconds at a time while so many are young.
 */
export class TextNumbers {
  readonly #textOf: (number: number) => string;
  readonly #slots: Uint32Array; // 1 + a number, 0 for none
  readonly #hashes: Uint32Array; // by slot, so that hardly any text is looked at for another

  /** For at most `count` texts; `textOf` says which text has a number. */
  constructor(count: number, textOf: (number: number) => string) {
    let slots = 2;
    while (slots < 2 * count) slots *= 2;
    this.#textOf = textOf;
    this.#slots = new Uint32Array(slots);
    this.#hashes = new Uint32Array(slots);
  }

  /** Adds a text as `number`. Of a text that has a number, changes nothing and returns that, else -1. */
  add(text: string, number: number): number {
    const hash = hashText(text, SEED);
    const slot = this.#slotOf(text, hash);
    const there = this.#slots[slot]! - 1;
    if (there >= 0) return there;
    this.#slots[slot] = number + 1;
    this.#hashes[slot] = hash;
    return -1;
  }

  /** The number of a text; -1 for none. */
  find(text: string): number {
    return this.#slots[this.#slotOf(text, hashText(text, SEED))]! - 1;
  }

  /** The slot that has the text, or else would get it. */
  #slotOf(text: string, hash: number): number {
    const mask = this.#slots.length - 1;
    let at = hash & mask;
    for (; this.#slots[at] !== 0; at = (at + 1) & mask)
      if (this.#hashes[at] === hash && this.#textOf(this.#slots[at]! - 1) === text) break;
    return at;
  }
}

/** About so many keys each Map has: to grow one takes some microseconds, and they do not all grow at the same time. */
const PART = 512;

/** A Map from texts that is several ones: each grows by itself, and none is large. */
export class TextMap<V> {
  readonly #parts: Map<string, V>[];

  /** `expected`: about how many there will be. */
  constructor(expected: number) {
    let parts = 1;
    while (parts * PART < expected) parts *= 2;
    this.#parts = Array.from({ length: parts }, () => new Map());
  }

  get size(): number {
    return this.#parts.reduce((size, part) => size + part.size, 0);
  }

  has(text: string): boolean {
    return this.#partOf(text).has(text);
  }

  get(text: string): V | undefined {
    return this.#partOf(text).get(text);
  }

  set(text: string, value: V): void {
    this.#partOf(text).set(text, value);
  }

  #partOf(text: string): Map<string, V> {
    const parts = this.#parts;
    return parts.length === 1 ? parts[0]! : parts[hashText(text, SEED) & (parts.length - 1)]!;
  }
}
