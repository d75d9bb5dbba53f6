import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { DTYPE_BITS, DTYPE_NAMES, type DTypeName } from '../src/base/dtype.js';
import { SafeTensorsMetadata } from '../src/safetensors/metadata.js';
import { type SaveArray, type SaveTensor, saveFile } from '../src/safetensors/save-file.js';

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'fst-save-'));
  path = join(folder, 'm.safetensors');
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Elements that tell tensors apart. */
function tensor(
  name: string,
  dtype: DTypeName,
  shape: number[],
  seed = name.length,
): Required<SaveArray> & { data: Uint8Array } {
  const length = (shape.reduce((product, size) => product * size, 1) * DTYPE_BITS[dtype]) / 8;
  return { name, dtype, shape, data: Uint8Array.from({ length }, (_, i) => (i * 7 + seed * 31) & 0xff) };
}

function textOf(file: Buffer): string {
  return file.toString('utf8', 8, 8 + Number(file.readBigUInt64LE(0)));
}

test('the file is laid out as the format’s writers do', async () => {
  await saveFile(
    [
      tensor('b', 'U8', [3]),
      tensor('z', 'F32', [1]),
      tensor('a', 'F32', [2]),
      tensor('q', 'I64', []),
      tensor('f', 'F4', [2]),
    ],
    path,
    { metadata: { format: 'pt' } },
  );
  const file = readFileSync(path);
  const text = textOf(file);
  expect(text.length % 8).toBe(0);
  expect(text).toMatch(/^\{.*\} {0,7}$/);
  expect(text.trimEnd()).toBe(
    '{"__metadata__":{"format":"pt"},' +
      '"q":{"dtype":"I64","shape":[],"data_offsets":[0,8]},' +
      '"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},' +
      '"z":{"dtype":"F32","shape":[1],"data_offsets":[16,20]},' +
      '"b":{"dtype":"U8","shape":[3],"data_offsets":[20,23]},' +
      '"f":{"dtype":"F4","shape":[2],"data_offsets":[23,24]}}',
  );
  expect(file.length).toBe(8 + text.length + 24);
});

test('tensors are in the order of the ranks that safetensors gives dtypes, then of names', async () => {
  await saveFile(
    DTYPE_NAMES.flatMap((dtype) => [tensor(`b ${dtype}`, dtype, [4]), tensor(`a ${dtype}`, dtype, [4])]),
    path,
  );
  const found = [...(await SafeTensorsMetadata.fromFile(path))].map(({ name }) => name);
  // What safetensors 0.8 writes, but for F6, which it only reads from Python: there the order of its Dtype.
  const dtypes =
    'U64 I64 F64 C64 F32 U32 I32 BF16 F16 U16 I16 F8_E5M2FNUZ F8_E4M3FNUZ F8_E8M0 F8_E4M3 F8_E5M2 ' +
    'I8 U8 F6_E3M2 F6_E2M3 F4 BOOL';
  expect(found).toEqual(dtypes.split(' ').flatMap((dtype) => [`a ${dtype}`, `b ${dtype}`]));
});

test('names of one dtype are in the order of their UTF-8 bytes', async () => {
  const names = ['\uff5e', '😀', 'é', 'b', 'B', ''];
  await saveFile(
    names.map((name) => tensor(name, 'U8', [1])),
    path,
  );
  expect((await SafeTensorsMetadata.fromFile(path)).keys()).toEqual(['', 'B', 'b', 'é', '\uff5e', '😀']);
});

test('what is written is read back equal', async () => {
  const scenario = fc.uniqueArray(
    fc.record({
      name: fc.oneof(fc.string({ unit: 'binary' }), fc.constantFrom('__proto__', 'constructor', '"\\\n\0')),
      dtype: fc.constantFrom(...DTYPE_NAMES),
      // 4 elements of 6 bits are whole bytes.
      shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 }).map((shape) => [...shape, 4]),
    }),
    { selector: (item) => item.name, maxLength: 12 },
  );
  await fc.assert(
    fc.asyncProperty(scenario, fc.dictionary(fc.string(), fc.string()), async (items, metadata) => {
      const tensors = items.map((item, i) => tensor(item.name, item.dtype, item.shape, i));
      await saveFile(tensors, path, { metadata });
      const file = readFileSync(path);
      const read = await SafeTensorsMetadata.fromFile(path);
      expect(read.tensorCount).toBe(tensors.length);
      expect(read.dataStart % 8).toBe(0);
      expect(new Map(read.metadata)).toEqual(new Map(Object.entries(metadata)));
      for (const { name, dtype, shape, data } of tensors) {
        const frame = read.get(name)!;
        expect(frame).toMatchObject({ dtype, shape });
        expect(frame.dataOffsets[0] % Math.ceil(DTYPE_BITS[dtype] / 8)).toBe(0);
        const [begin, end] = frame.dataOffsets;
        expect(Buffer.compare(file.subarray(read.dataStart + begin, read.dataStart + end), data)).toBe(0);
      }
    }),
    { numRuns: 40 },
  );
});

test('tensors smaller and larger than one write keep their places', async () => {
  const sizes = [1_048_575, 1, 0, 1_048_576, 3, 2_500_000, 1_048_577, 5];
  const tensors = sizes.map((size, i) => tensor(`t${i}`, 'U8', [size], i));
  await saveFile(tensors, path);
  const file = readFileSync(path);
  const read = await SafeTensorsMetadata.fromFile(path);
  for (const { name, data } of tensors) {
    const [begin, end] = read.get(name)!.dataOffsets;
    expect([name, Buffer.compare(file.subarray(read.dataStart + begin, read.dataStart + end), data)]).toEqual([
      name,
      0,
    ]);
  }
});

test('no tensors at all make a file too', async () => {
  await saveFile([], path);
  const read = await SafeTensorsMetadata.fromFile(path);
  expect(read).toMatchObject({ tensorCount: 0, sizeBytes: 16, headerLength: 8 });
});

test('typed arrays say their dtype', async () => {
  const arrays = {
    I8: Int8Array.of(-1, 2),
    U8: Uint8Array.of(1, 255),
    U16: Uint16Array.of(1, 65535),
    I16: Int16Array.of(-1, 2),
    U32: Uint32Array.of(1, 2 ** 32 - 1),
    I32: Int32Array.of(-1, 2),
    F32: Float32Array.of(-0, Number.NaN),
    F64: Float64Array.of(-0, 1e300),
    U64: BigUint64Array.of(1n, 2n ** 64n - 1n),
    I64: BigInt64Array.of(-1n, 2n),
  } satisfies Partial<Record<DTypeName, ArrayBufferView>>;
  await saveFile(
    Object.entries(arrays).map(([name, data]) => ({ name, shape: [2], data })),
    path,
  );
  const file = readFileSync(path);
  for (const { name, dtype, dataOffsets } of await SafeTensorsMetadata.fromFile(path)) {
    expect(dtype).toBe(name);
    const { buffer } = arrays[dtype as keyof typeof arrays];
    const begin = file.length - [...(await SafeTensorsMetadata.fromFile(path))].at(-1)!.dataOffsets[1];
    expect(file.subarray(begin + dataOffsets[0], begin + dataOffsets[1])).toEqual(Buffer.from(buffer));
  }
});

test('elements may be bytes, any view of bytes, or the typed array that is nearest to their dtype', async () => {
  const bytes = Uint8Array.of(9, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9);
  const view = [bytes.buffer, 2, 8] as const;
  await saveFile(
    [
      { name: 'bytes', dtype: 'BF16', shape: [4], data: new Uint8Array(...view) },
      { name: 'view', dtype: 'BF16', shape: [4], data: new DataView(...view) },
      { name: 'nearest', dtype: 'BF16', shape: [4], data: new Uint16Array(bytes.buffer, 2, 4) },
      { name: 'pairs', dtype: 'C64', shape: [1], data: new Float32Array(bytes.slice(2, 10).buffer) },
      { name: 'flags', dtype: 'BOOL', shape: [8], data: Buffer.from(...view) },
    ],
    path,
  );
  const read = await SafeTensorsMetadata.fromFile(path);
  const file = readFileSync(path);
  for (const { name, dataOffsets } of read) {
    const data = file.subarray(read.dataStart + dataOffsets[0], read.dataStart + dataOffsets[1]);
    expect([name, ...data]).toEqual([name, 1, 2, 3, 4, 5, 6, 7, 8]);
  }
});

test.each([
  ['a record', (tensors: Record<string, SaveTensor>) => tensors],
  ['a Map', (tensors: Record<string, SaveTensor>) => new Map(Object.entries(tensors))],
])('%s gives names, whatever a tensor is called', async (_, make) => {
  const tensors = { a: { shape: [1], data: Float32Array.of(1) }, b: tensor('other', 'U8', [2]) };
  await saveFile(make(tensors), path);
  const read = await SafeTensorsMetadata.fromFile(path);
  expect([...read].map(({ name, dtype }) => [name, dtype])).toEqual([
    ['a', 'F32'],
    ['b', 'U8'],
  ]);
});

test('an existing file is replaced, by another inode', async () => {
  await saveFile([tensor('a', 'U8', [4])], path);
  const before = statSync(path).ino;
  await saveFile([tensor('b', 'U8', [4])], path);
  expect(statSync(path).ino).not.toBe(before);
  expect((await SafeTensorsMetadata.fromFile(path)).keys()).toEqual(['b']);
  expect(readdirSync(folder)).toEqual(['m.safetensors']);
});

const good = tensor('w', 'F32', [2]);
test.each<[string, string, unknown]>([
  ['an unknown dtype', 'UNKNOWN_DTYPE', [{ ...good, dtype: 'F33' }]],
  ['a dtype of the prototype', 'UNKNOWN_DTYPE', [{ ...good, dtype: 'toString' }]],
  ['data too short', 'TENSOR_INVALID_INFO', [{ ...good, data: new Uint8Array(7) }]],
  ['data too long', 'TENSOR_INVALID_INFO', [{ ...good, data: new Uint8Array(9) }]],
  ['a negative size', 'TENSOR_INVALID_INFO', [{ ...good, shape: [-2, -1] }]],
  ['a fractional size', 'TENSOR_INVALID_INFO', [{ ...good, shape: [0.5, 4] }]],
  ['a shape that is no array', 'TENSOR_INVALID_INFO', [{ ...good, shape: 2 }]],
  [
    'a product that overflows',
    'TENSOR_INVALID_INFO',
    [{ ...good, shape: [2 ** 40, 2 ** 40, 0], data: new Uint8Array(0) }],
  ],
  ['half a byte', 'TENSOR_INVALID_INFO', [{ name: 'w', dtype: 'F4', shape: [3], data: new Uint8Array(2) }]],
  ['data of other elements', 'INVALID_ARGUMENT', [{ ...good, data: new Int32Array(2) }]],
  [
    'elements that are floats of another kind',
    'INVALID_ARGUMENT',
    [{ ...good, dtype: 'F16', data: new Float32Array(1) }],
  ],
  [
    'a view that does not say its dtype',
    'INVALID_ARGUMENT',
    [{ name: 'w', shape: [1], data: new DataView(new ArrayBuffer(8)) }],
  ],
  ['a typed array for a tensor', 'INVALID_ARGUMENT', [new Float32Array(2)]],
  ['a name in a record that is reserved', 'INVALID_ARGUMENT', { __metadata__: good }],
  ['something else in a record', 'INVALID_ARGUMENT', { w: 1 }],
  ['a name given twice', 'DUPLICATE_TENSOR', [good, good]],
  ['the reserved name', 'INVALID_ARGUMENT', [{ ...good, name: '__metadata__' }]],
  ['a name with a lone surrogate', 'INVALID_ARGUMENT', [{ ...good, name: 'a\ud83d' }]],
  ['a name that is none', 'INVALID_ARGUMENT', [{ ...good, name: 1 }]],
  ['null for a tensor', 'INVALID_ARGUMENT', [null]],
  ['no list nor record', 'INVALID_ARGUMENT', 1],
  ['a typed array for all tensors', 'INVALID_ARGUMENT', new Float32Array(2)],
])('%s is %s, and nothing is written', async (_, code, tensors) => {
  writeFileSync(path, 'old');
  await expect(saveFile(tensors as SaveTensor[], path)).rejects.toMatchObject({ code });
  expect(readdirSync(folder)).toEqual(['m.safetensors']);
  expect(readFileSync(path, 'utf8')).toBe('old');
});

test.each<[string, unknown]>([
  ['a misspelled option', { metaData: {} }],
  ['metadata that is no object', { metadata: 'x' }],
  ['a metadata value that is no string', { metadata: { a: 1 } }],
  ['a metadata value with a lone surrogate', { metadata: { a: '\ude00' } }],
  ['options that are null', null],
])('%s is INVALID_ARGUMENT', async (_, options) => {
  await expect(saveFile([good], path, options as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  expect(readdirSync(folder)).toEqual([]);
});

test('an iterable that throws rejects with its error and leaves no file', async () => {
  function* failing() {
    yield good;
    throw new Error('mine');
  }
  await expect(saveFile(failing(), path)).rejects.toThrow('mine');
  expect(readdirSync(folder)).toEqual([]);
});

test('a folder that is missing is IO_ERROR with its cause', async () => {
  const missing = join(folder, 'no', 'm.safetensors');
  await expect(saveFile([good], missing)).rejects.toMatchObject({
    code: 'IO_ERROR',
    path: missing,
    cause: expect.objectContaining({ code: 'ENOENT' }),
  });
});

test('the temporary file is gone when the last step fails', async () => {
  mkdirSync(path); // a folder cannot be renamed over
  await expect(saveFile([good], path)).rejects.toMatchObject({ code: 'IO_ERROR' });
  expect(readdirSync(folder)).toEqual(['m.safetensors']);
});

test.each<[string, { metadata?: Record<string, string>; name?: string }]>([
  ['metadata that is longer with its escapes than a string can be', { metadata: { k: '\0'.repeat(95_000_000) } }],
  ['metadata that fits a string, but no header', { metadata: { k: '\0'.repeat(40_000_000) } }],
  ['a key of metadata like that', { metadata: { ['\0'.repeat(95_000_000)]: 'v' } }],
  ['a name like that', { name: '\0'.repeat(95_000_000) }],
])('%s is HEADER_TOO_LARGE', async (_, { metadata, name = 'a' }) => {
  const saved = saveFile([tensor(name, 'U8', [1], 0)], path, { metadata });
  await expect(saved).rejects.toMatchObject({ code: 'HEADER_TOO_LARGE', path });
  expect(readdirSync(folder)).toEqual([]);
});

test('values of every kind in wrong places are told, whatever JSON says of them', async () => {
  const data = new Uint8Array(1);
  const good = { name: 'a', dtype: 'U8', shape: [1], data };
  const cyclic: unknown[] = [];
  cyclic.push(cyclic);
  const odd = [Symbol('odd'), 1n, cyclic, { cyclic }, () => 1, Object.create(null), undefined, null];
  for (const value of odd) {
    for (const [tensors, target, options, code] of [
      [[{ ...good, name: value }], path, {}, /INVALID_ARGUMENT/],
      [[{ ...good, dtype: value === undefined ? null : value }], path, {}, /UNKNOWN_DTYPE/], // undefined: not given
      [[{ ...good, shape: value }], path, {}, /TENSOR_INVALID_INFO/],
      [[{ ...good, shape: [value] }], path, {}, /TENSOR_INVALID_INFO/],
      [[{ ...good, data: value }], path, {}, /INVALID_ARGUMENT/],
      [[value], path, {}, /INVALID_ARGUMENT/],
      [[good], value, {}, /INVALID_ARGUMENT/],
      [[good], path, { metadata: { k: value } }, /INVALID_ARGUMENT/],
    ] as const) {
      await expect(saveFile(tensors as never, target as never, options as never)).rejects.toMatchObject({
        code: expect.stringMatching(code),
      });
    }
  }
  expect(readdirSync(folder)).toEqual([]);
});
