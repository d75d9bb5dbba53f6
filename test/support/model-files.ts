import { randomBytes } from 'node:crypto';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import type { DTypeName } from 'fastsafetensors-node';

/** Bits of an element, as the format says; stated here again so that tests do not lean on the package's table. */
export const BITS: Readonly<Record<DTypeName, number>> = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  U16: 16,
  I16: 16,
  F16: 16,
  BF16: 16,
  U32: 32,
  I32: 32,
  F32: 32,
  U64: 64,
  I64: 64,
  F64: 64,
  C64: 64,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  F6_E2M3: 6,
  F6_E3M2: 6,
  F4: 4,
};

export interface Entry {
  name: string;
  dtype: DTypeName;
  shape: number[];
  bytes: Uint8Array;
}

export interface Layout {
  /** Keys of the header in this order of entries; by default that of the data. */
  headerOrder?: readonly number[];
  padding?: number;
  metadata?: Record<string, string>;
}

/**
 * A .safetensors file with its data in the order of entries: a writer of its own, so that no mistake of saveFile's can
 * hide one of the reader's.
 */
export function encodeFile(entries: readonly Entry[], { headerOrder, padding = 0, metadata }: Layout = {}): Buffer {
  let end = 0;
  const texts = entries.map(({ name, dtype, shape, bytes }) => {
    const begin = end;
    end += bytes.byteLength;
    return `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${begin},${end}]}`;
  });
  const ordered = (headerOrder ?? entries.map((_, i) => i)).map((i) => texts[i]!);
  if (metadata) ordered.unshift(`"__metadata__":${JSON.stringify(metadata)}`);
  const header = Buffer.from(`{${ordered.join(',')}}${' '.repeat(padding)}`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, ...entries.map((entry) => entry.bytes)]);
}

/** An entry with random bytes. */
export function entry(name: string, dtype: DTypeName, shape: number[]): Entry {
  const elements = shape.reduce((product, size) => product * size, 1);
  return { name, dtype, shape, bytes: randomBytes((elements * BITS[dtype]) / 8) };
}

export function newFolder(): Promise<string> {
  return mkdtemp(join(tmpdir(), 'fastsafetensors-'));
}

export async function writeModel(
  folder: string,
  entries: readonly Entry[],
  name = 'model.safetensors',
): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, encodeFile(entries));
  return path;
}

/** Some tensors of several sizes, an empty one and a scalar among them. */
export function someEntries(prefix = ''): Entry[] {
  return [
    entry(`${prefix}weight`, 'F32', [64, 33]),
    entry(`${prefix}empty`, 'F16', [0, 3]),
    entry(`${prefix}bias`, 'BF16', [77]),
    entry(`${prefix}scalar`, 'I64', []),
    entry(`${prefix}bytes`, 'U8', [5]),
  ];
}

const ODD_NAMES = [
  '__proto__',
  'constructor',
  'toString',
  'hasOwnProperty',
  '',
  '\u0000',
  'a"b\\c',
  '权重',
  '🙂',
  '__metadata',
];

const shapes = fc.oneof(
  { weight: 1, arbitrary: fc.constant<number[]>([]) },
  { weight: 6, arbitrary: fc.array(fc.nat({ max: 6 }), { minLength: 1, maxLength: 4 }) },
  { weight: 2, arbitrary: fc.array(fc.integer({ min: 20, max: 70 }), { minLength: 1, maxLength: 2 }) },
  { weight: 1, arbitrary: fc.constant(new Array<number>(20).fill(1)) },
);

const unnamed = fc
  .record({ dtype: fc.constantFrom(...(Object.keys(BITS) as DTypeName[])), shape: shapes, seed: fc.nat() })
  .map(({ dtype, shape, seed }) => {
    const whole = BITS[dtype] < 8 ? [...shape, 4] : shape; // whole bytes
    const length = (whole.reduce((product, size) => product * size, 1) * BITS[dtype]) / 8;
    return { dtype, shape: whole, bytes: pseudoRandom(seed, length) };
  });

/** Files with tensors of every dtype and odd shapes and names, each name once; some files have none. */
export const models: fc.Arbitrary<{ files: { entries: Entry[]; layout: Layout }[] }> = fc
  .tuple(
    fc.array(fc.array(unnamed, { maxLength: 12 }), { minLength: 1, maxLength: 6 }),
    fc.uniqueArray(fc.oneof(fc.constantFrom(...ODD_NAMES), fc.string({ unit: 'grapheme', maxLength: 30 })), {
      minLength: 72,
      maxLength: 72,
    }),
    fc.array(fc.nat({ max: 600 }), { minLength: 6, maxLength: 6 }),
    fc.nat(),
  )
  .map(([files, names, paddings, seed]) => {
    let next = 0;
    const name = (): string => {
      const given = names[next++]!;
      return given === '__metadata__' ? 'no metadata' : given;
    };
    return {
      files: files.map((tensors, i) => {
        const entries = tensors.map((tensor) => ({ name: name(), ...tensor }));
        return { entries, layout: { padding: paddings[i]!, headerOrder: shuffled(entries.length, seed + i) } };
      }),
    };
  });

export function pseudoRandom(seed: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = (seed ^ 0x9e3779b9) >>> 0 || 1;
  for (let i = 0; i < length; ++i) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state >>> 11;
  }
  return bytes;
}

export function shuffled(count: number, seed: number): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  const random = new Uint32Array(pseudoRandom(seed, 4 * count).slice().buffer);
  for (let i = count - 1; i > 0; --i) {
    const j = random[i]! % (i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** Of wide, packed and 4-bit elements, empty, a scalar, and a name that has to be escaped. */
export const ODD_ENTRIES: readonly Entry[] = [
  entry('a', 'F32', [100, 7]),
  entry('b "quoted" ü', 'BF16', [33]),
  entry('empty', 'I64', [0, 4]),
  entry('4bit', 'F4', [6, 2]),
  entry('scalar', 'U8', []),
];
