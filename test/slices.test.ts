import { rm } from 'node:fs/promises';
import * as fc from 'fast-check';
import { DeviceTensor, type DTypeName, fastsafeOpen, type LoaderOptions, type SliceRange } from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
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
    await expect(opened.getSlice('t', ...ranges)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  }
  await expect(opened.getSlice('absent', 0)).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: 'absent' });
  await opened.close();
});
