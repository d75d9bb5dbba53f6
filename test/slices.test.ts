import { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import {
  DeviceTensor,
  type DTypeName,
  fastsafeOpen,
  type LoaderOptions,
  SafeTensorsMetadata,
  type SliceRange,
} from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { planSlice } from '../src/transfer/slice-plan.js';
import { expectNothingHeld } from './support/metrics.js';
import { BITS, entry, newFolder, writeModel } from './support/model-files.js';

// getSlice returns what Python's slicing returns of the same bytes.

/** Python's range(start, stop, step)[…] over a dimension: the picked indices. */
function picked(range: SliceRange, size: number): number[] {
  if (typeof range === 'number') return [range < 0 ? range + size : range];
  const { start, stop, step = 1 } = range;
  const clamp = (value: number | undefined, otherwise: number): number => {
    if (value === undefined) return otherwise;
    const from = value < 0 ? value + size : value;
    return step > 0 ? Math.min(Math.max(from, 0), size) : Math.min(Math.max(from, -1), size - 1);
  };
  const indices: number[] = [];
  const end = clamp(stop, step > 0 ? size : -1);
  for (let i = clamp(start, step > 0 ? 0 : size - 1); step > 0 ? i < end : i > end; i += step) indices.push(i);
  return indices;
}

function slice(bytes: Uint8Array, shape: number[], width: number, ranges: SliceRange[]) {
  const all = shape.map((size, axis) => picked(ranges[axis] ?? {}, size));
  const elements: Uint8Array[] = [];
  const visit = (axis: number, element: number): void => {
    if (axis === shape.length) elements.push(bytes.subarray(element * width, (element + 1) * width));
    else for (const i of all[axis]!) visit(axis + 1, element * shape[axis]! + i);
  };
  visit(0, 0);
  return {
    shape: all.filter((_, axis) => typeof ranges[axis] !== 'number').map((indices) => indices.length),
    bytes: Buffer.concat(elements),
  };
}

const bound = fc.option(fc.integer({ min: -12, max: 12 }), { nil: undefined });
const cases = fc
  .record({
    dtype: fc.constantFrom<DTypeName>('U8', 'BF16', 'F32', 'C64', 'F8_E4M3'),
    shape: fc.array(fc.nat({ max: 9 }), { minLength: 0, maxLength: 4 }),
  })
  .chain(({ dtype, shape }) =>
    fc.record({
      dtype: fc.constant(dtype),
      shape: fc.constant(shape),
      ranges: fc.tuple(
        ...shape.map((size) => {
          const range = fc.record({
            start: bound,
            stop: bound,
            step: fc.constantFrom(undefined, 1, 2, 3, 7, -1, -2),
          });
          return size === 0
            ? range
            : fc.oneof<fc.Arbitrary<SliceRange>[]>(range, fc.integer({ min: -size, max: size - 1 }));
        }),
      ),
      given: fc.nat({ max: shape.length }),
    }),
  );

let folder: string;
beforeEach(async () => {
  folder = await newFolder();
  useFakeDevices({ copyDelayUs: 20 });
});
afterEach(async () => {
  useFakeDevices(null);
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

const HOW: Record<string, LoaderOptions> = {
  'the host': {},
  'the host past the page cache': { odirect: true },
  'a device': { device: 'cuda:0' },
};

test.each(Object.entries(HOW))('a slice on %s is what Python slices', async (_, options) => {
  await fc.assert(
    fc.asyncProperty(cases, async ({ dtype, shape, ranges, given }) => {
      const entries = [entry('before', 'U8', [3]), entry('tensor', dtype, shape), entry('after', 'U8', [300])];
      const path = await writeModel(folder, entries);
      const opened = await fastsafeOpen(path, options);
      const some = ranges.slice(0, given);
      const tensor = await opened.getSlice('tensor', ...some);
      const expected = slice(entries[1]!.bytes, shape, BITS[dtype] / 8, some);
      expect(tensor).toBeInstanceOf(DeviceTensor);
      expect({ name: tensor.name, dtype: tensor.dtype, shape: tensor.shape }).toEqual({
        name: 'tensor',
        dtype,
        shape: expected.shape,
      });
      expect(Buffer.from(await tensor.toHost()).toString('hex')).toBe(expected.bytes.toString('hex'));
      expect(tensor.pointer % 256n).toBe(0n);
      tensor.dispose();
      await opened.close();
    }),
    { numRuns: 60 },
  );
});

test('a thin slice of a large tensor reads its rows only', async () => {
  const large = entry('large', 'F32', [1000, 5000]);
  const opened = await fastsafeOpen(await writeModel(folder, [large]));
  const column = await opened.getSlice('large', { step: 100 }, 7);
  expect(column.shape).toEqual([10]);
  expect(Buffer.from(await column.toHost())).toEqual(slice(large.bytes, [1000, 5000], 4, [{ step: 100 }, 7]).bytes);
  column.dispose();
  await opened.close();
});

test('an index outside, a step of 0 and too many ranges are refused', async () => {
  const opened = await fastsafeOpen(await writeModel(folder, [entry('t', 'F32', [2, 3])]));
  for (const ranges of [[2], [-3], [{ step: 0 }], [0, 0, 0], [0.5], ['1'], [null], [{ begin: 1 }]]) {
    await expect(opened.getSlice('t', ...(ranges as SliceRange[]))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  }
  await expect(opened.getSlice('absent', 0)).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: 'absent' });
  await opened.close();
});

// Runs that are read together in pieces and copied apart: more pieces than one, cut within a dimension; small pieces
// that lie far apart; rows that are read alone.
test.each<[string, DTypeName, number[], SliceRange[]]>([
  ['every third byte of more than a piece', 'U8', [70_000_001], [{ start: 1, step: 3 }]],
  ['the same backwards', 'U8', [70_000_001], [{ step: -3 }]],
  ['columns of more than a piece', 'BF16', [7, 5000, 501], [{ step: -2 }, { start: 3 }, { step: 50 }]],
  ['a few columns of wide rows', 'F32', [60, 20_000], [{ step: -1 }, { start: 5, stop: 105, step: 7 }]],
  ['one column of wide rows', 'F32', [60, 20_000], [{ step: 2 }, -1]],
  ['long runs beside each other', 'U8', [9, 2, 70_000], [{}, 1]],
])('%s', async (_, dtype, shape, ranges) => {
  const large = entry('large', dtype, shape);
  const path = await writeModel(folder, [entry('before', 'U8', [3]), large]);
  const expected = strided(large.bytes, shape, BITS[dtype] / 8, ranges);
  for (const options of Object.values(HOW)) {
    const opened = await fastsafeOpen(path, options);
    const tensor = await opened.getSlice('large', ...ranges);
    expect(tensor.shape).toEqual(expected.shape);
    expect(Buffer.compare(await tensor.toHost(), expected.bytes)).toBe(0);
    tensor.dispose();
    await opened.close();
  }
});

/** As slice(), for tensors of many elements. */
function strided(bytes: Uint8Array, shape: number[], width: number, ranges: SliceRange[]) {
  const all = shape.map((size, axis) => picked(ranges[axis] ?? {}, size));
  const out = Buffer.alloc(all.reduce((product, { length }) => product * length, width));
  let at = 0;
  const visit = (axis: number, element: number): void => {
    for (const i of all[axis]!) {
      const next = element * shape[axis]! + i;
      if (axis + 1 < shape.length) visit(axis + 1, next);
      else for (let k = 0; k < width; ++k) out[at++] = bytes[next * width + k]!;
    }
  };
  visit(0, 0);
  return { shape: all.filter((_, axis) => typeof ranges[axis] !== 'number').map(({ length }) => length), bytes: out };
}

test('a slice that is converted is copied apart as what it became', async () => {
  const large = entry('large', 'BF16', [30, 41]);
  for (let at = 1; at < large.bytes.length; at += 2) large.bytes[at]! &= 0xbf; // no NaNs: they become quiet
  const path = await writeModel(folder, [large]);
  for (const options of Object.values(HOW)) {
    const opened = await fastsafeOpen(path, { ...options, dtype: 'F32' });
    const ranges = [{ step: -3 }, { start: 1, step: 2 }];
    const tensor = await opened.getSlice('large', ...ranges);
    const { bytes } = slice(large.bytes, [30, 41], 2, ranges);
    const wide = Buffer.alloc(bytes.length * 2);
    for (let at = 0; at < bytes.length; at += 2) bytes.copy(wide, 2 * at + 2, at, at + 2);
    expect(tensor.dtype).toBe('F32');
    expect(Buffer.from(await tensor.toHost()).toString('hex')).toBe(wide.toString('hex'));
    tensor.dispose();
    await opened.close();
  }
});

test('the work of a slice is that of the bytes read, not of its runs', async () => {
  const size = 150_000_000;
  const json = Buffer.from(`{"t":{"dtype":"U8","shape":[${size}],"data_offsets":[0,${size}]}}   `);
  const path = join(folder, 'sparse.safetensors');
  const file = await open(path, 'w');
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  await file.write(Buffer.concat([length, json]));
  await file.truncate(8 + json.length + size);
  await file.close();
  const metadata = await SafeTensorsMetadata.fromFile(path);
  const { plan, copyOf } = await planSlice(metadata, metadata.get('t')!.slice({ step: 2 }), undefined);
  expect(plan.count).toBeLessThan(10); // 75 million runs
  expect(Math.max(...plan.allocationSizes)).toBeLessThanOrEqual(32 * 1024 * 1024);
  expect(copyOf!(0).length).toBeLessThan(10);

  const opened = await fastsafeOpen(path);
  let turns = 0;
  const ticker = setInterval(() => ++turns, 1);
  const tensor = await opened.getSlice('t', { step: 2 });
  clearInterval(ticker);
  expect(turns).toBeGreaterThan(0); // the event loop went on
  expect(tensor.byteLength).toBe(size / 2);
  tensor.dispose();
  await opened.close();
}, 30_000);

test('a slice that is aborted or closed while its pieces come leaves nothing behind', async () => {
  const path = await writeModel(folder, [entry('large', 'U8', [70_000_001])]);
  for (const end of ['abort', 'close'] as const) {
    const abort = new AbortController();
    const opened = await fastsafeOpen(path, { signal: abort.signal });
    const reading = opened.getSlice('large', { step: 2 });
    const settled = reading.then(
      () => 'read',
      (error) => error.code ?? error.message,
    );
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (end === 'abort') abort.abort(new Error('enough'));
    else await opened.close();
    expect(['enough', 'CLOSED']).toContain(await settled);
    await opened.close();
  }
});
