import { rm } from 'node:fs/promises';
import { type DeviceTensor, type DTypeName, loadFile } from 'fastsafetensors-node';
import { native } from '../src/native/addon.js';
import { expectNothingHeld } from './support/metrics.js';
import { type Entry, entry, newFolder, writeModel } from './support/model-files.js';

// Typed arrays from `data`: over the tensor's own memory, whatever they share an ArrayBuffer with.

const KIB = 1024;
const SMALL: Entry[] = (['U8', 'F16', 'F32', 'F64', 'C64', 'I64', 'F4', 'BOOL'] as DTypeName[]).flatMap((dtype) => [
  entry(`${dtype} a`, dtype, [3, 8]),
  entry(`${dtype} b`, dtype, [1000]),
]);
const MANY = Array.from({ length: 300 }, (_, i) => entry(`many ${i}`, 'U16', [1 + 97 * (i % 160)]));
const LARGE = [entry('large 0', 'F32', [32 * KIB]), entry('large 1', 'U8', [32 * KIB + 1]), entry('empty', 'I32', [0])];
const ENTRIES = [...SMALL, ...MANY, ...LARGE];

let folder: string;
let tensors: Record<string, DeviceTensor>;
let made: jest.SpyInstance;
beforeAll(async () => {
  folder = await newFolder();
});
beforeEach(async () => {
  tensors = await loadFile(await writeModel(folder, ENTRIES));
  made = jest.spyOn(native(), 'arrayBufferOf');
});
afterEach(async () => {
  made.mockRestore();
  for (const tensor of Object.values(tensors)) tensor.dispose();
  tensors = {};
  await expectNothingHeld({ collect: true });
});
afterAll(() => rm(folder, { recursive: true }));

const viewOf = ({ data }: DeviceTensor): Buffer => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

test('every array has its tensor’s bytes, and outlives it', async () => {
  const arrays = ENTRIES.map(({ name }) => viewOf(tensors[name]!));
  for (const tensor of Object.values(tensors)) tensor.dispose();
  for (const [i, { bytes }] of ENTRIES.entries()) expect(Buffer.compare(arrays[i]!, bytes)).toBe(0);
});

test('small ones share ArrayBuffers: few are made for many', () => {
  for (const { name } of [...SMALL, ...MANY]) void tensors[name]!.data;
  const bytes = [...SMALL, ...MANY].reduce((sum, entry) => sum + entry.bytes.length, 0);
  expect(made.mock.calls.length).toBeLessThanOrEqual(Math.ceil(bytes / (256 * KIB)) + 1);
  for (const [, , length] of made.mock.calls) expect(length).toBeLessThanOrEqual(288 * KIB);
});

test('an array of more than 32 KiB has an ArrayBuffer of its own', () => {
  for (const name of ['large 0', 'large 1']) {
    const { data } = tensors[name]!;
    expect([data.byteOffset, data.buffer.byteLength]).toEqual([0, data.byteLength]);
  }
});

test('what is written goes to the tensor’s own bytes, and to no neighbour', async () => {
  for (const { name } of MANY) (tensors[name]!.data as Uint16Array).fill(7);
  for (const { name, bytes } of ENTRIES) {
    const now = await tensors[name]!.toHost();
    if (name.startsWith('many')) expect(new Set(new Uint16Array(now.slice().buffer))).toEqual(new Set([7]));
    else expect(Buffer.compare(now, bytes)).toBe(0);
  }
});

test('where an ArrayBuffer was detached, data is there anew', () => {
  const [first, second] = [tensors['many 0']!, tensors['many 1']!];
  const before = second.data;
  expect(first.data.buffer).toBe(before.buffer);
  const buffer = before.buffer as ArrayBuffer & { transfer?: () => ArrayBuffer };
  if (!buffer.transfer) return expect(first.data).toHaveLength(1); // Node 20 lets nobody detach memory of an addon
  buffer.transfer();
  expect(before.byteLength).toBe(0);
  for (const [i, tensor] of [first, second].entries()) {
    expect(Buffer.compare(viewOf(tensor), MANY[i]!.bytes)).toBe(0);
  }
});

test('the same array is given again', () => {
  for (const { name } of ENTRIES) expect(tensors[name]!.data).toBe(tensors[name]!.data);
});
