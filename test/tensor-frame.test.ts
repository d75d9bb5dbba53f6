import fc from 'fast-check';
import { DTYPE_BITS, type DTypeName } from '../src/base/dtype.js';
import { type SliceRange, TensorFrame } from '../src/safetensors/tensor-frame.js';

const BASE = 1000;

function frameOf(shape: number[], dtype: DTypeName = 'U8'): TensorFrame {
  const bytes = (shape.reduce((product, size) => product * size, 1) * DTYPE_BITS[dtype]) / 8;
  return new TensorFrame('w', dtype, shape, [BASE, BASE + bytes]);
}

/** The byte runs of a frame in the order of its elements, as its grid gives them; neighbours merged. */
function runsOf(frame: TensorFrame): { offset: number; length: number }[] {
  if (frame.byteLength === 0) return [];
  const { offset, length, dims } = frame.grid();
  const offsets = dims.reduce(
    (begins, { count, stride }) =>
      begins.flatMap((begin) => Array.from({ length: count }, (_, i) => begin + i * stride)),
    [offset],
  );
  const runs: { offset: number; length: number }[] = [];
  for (const begin of offsets) {
    const last = runs.at(-1);
    if (last && last.offset + last.length === begin) last.length += length;
    else runs.push({ offset: begin, length });
  }
  return runs;
}

/** The numbers of the bytes that a frame's runs read, in order. */
function bytesOf(frame: TensorFrame): number[] {
  return runsOf(frame).flatMap(({ offset, length }) => Array.from({ length }, (_, i) => offset - BASE + i));
}

/** list(range(size))[start:stop:step], said as the language's reference does and not as the code does. */
function pythonSlice(size: number, range: SliceRange): number[] {
  if (typeof range === 'number') return [range < 0 ? range + size : range];
  const { start, stop, step = 1 } = range;
  const absolute = (value: number) => (value < 0 ? value + size : value);
  const from = start === undefined ? (step > 0 ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY) : absolute(start);
  const to = stop === undefined ? (step > 0 ? Number.POSITIVE_INFINITY : Number.NEGATIVE_INFINITY) : absolute(stop);
  const picked: number[] = [];
  // The walk begins at the first place within the list, or at `from` when that is within it.
  let i = step > 0 ? Math.max(from, 0) : Math.min(from, size - 1);
  for (; i >= 0 && i < size && (step > 0 ? i < to : i > to); i += step) picked.push(i);
  return picked;
}

// From CPython 3: list(range(5))[start:stop:step].
const PYTHON: [SliceRange, number[]][] = [
  [{}, [0, 1, 2, 3, 4]],
  [{ start: 1 }, [1, 2, 3, 4]],
  [{ stop: 2 }, [0, 1]],
  [{ start: -2 }, [3, 4]],
  [{ stop: -2 }, [0, 1, 2]],
  [{ start: -100, stop: 100 }, [0, 1, 2, 3, 4]],
  [{ start: 3, stop: 1 }, []],
  [{ start: 5 }, []],
  [{ start: 100 }, []],
  [{ stop: -100 }, []],
  [{ step: 2 }, [0, 2, 4]],
  [{ start: 1, step: 2 }, [1, 3]],
  [{ step: 100 }, [0]],
  [{ step: -1 }, [4, 3, 2, 1, 0]],
  [{ step: -2 }, [4, 2, 0]],
  [{ start: 3, step: -1 }, [3, 2, 1, 0]],
  [{ start: 3, stop: 0, step: -1 }, [3, 2, 1]],
  [{ stop: -3, step: -1 }, [4, 3]],
  [{ start: -100, step: -1 }, []],
  [{ start: 100, stop: -100, step: -3 }, [4, 1]],
  [{ start: 1, stop: 3, step: -1 }, []],
];

test.each(PYTHON)('a range %j picks what Python picks', (range, picked) => {
  const slice = frameOf([5]).slice(range);
  expect(slice.shape).toEqual([picked.length]);
  expect(bytesOf(slice)).toEqual(picked);
  expect(pythonSlice(5, range)).toEqual(picked);
});

test('an index drops its dimension, a range keeps it', () => {
  const frame = frameOf([2, 3, 4], 'F32');
  expect(frame.slice(1)).toMatchObject({
    name: 'w',
    dtype: 'F32',
    shape: [3, 4],
    byteLength: 48,
    dataOffsets: [BASE + 48, BASE + 96],
  });
  expect(frame.slice(-1, -1, -1)).toMatchObject({ shape: [], byteLength: 4, dataOffsets: [BASE + 92, BASE + 96] });
  expect(frame.slice({ start: 1 })).toMatchObject({ shape: [1, 3, 4], byteLength: 48 });
  expect(frame.slice()).toMatchObject({ shape: [2, 3, 4], dataOffsets: [BASE, BASE + 96] });
  expect(frameOf([]).slice()).toMatchObject({ shape: [], byteLength: 1 });
});

test('a slice that is not contiguous spans more than it has, and its runs say what is its own', () => {
  const column = frameOf([3, 4], 'F32').slice({}, 1);
  expect(column).toMatchObject({ shape: [3], byteLength: 12, dataOffsets: [BASE + 4, BASE + 40], isContiguous: false });
  expect(runsOf(column)).toEqual([
    { offset: BASE + 4, length: 4 },
    { offset: BASE + 20, length: 4 },
    { offset: BASE + 36, length: 4 },
  ]);
});

test('runs are as long as they can be', () => {
  const frame = frameOf([4, 3, 5]);
  expect(runsOf(frame)).toEqual([{ offset: BASE, length: 60 }]);
  expect(runsOf(frame.slice({ start: 1, stop: 3 }))).toEqual([{ offset: BASE + 15, length: 30 }]);
  expect(frame.slice({ start: 1, stop: 3 }).isContiguous).toBe(true);
  expect(runsOf(frame.slice({ step: 2 }))).toEqual([
    { offset: BASE, length: 15 },
    { offset: BASE + 30, length: 15 },
  ]);
  expect(runsOf(frame.slice({ stop: 0 }))).toEqual([]);
  // The last pick of a row and the first of the next are neighbours.
  expect(runsOf(frameOf([2, 3]).slice({}, { step: 2 }))).toEqual([
    { offset: BASE, length: 1 },
    { offset: BASE + 2, length: 2 },
    { offset: BASE + 5, length: 1 },
  ]);
});

test('any slice of any tensor, sliced again, reads the elements that Python would', () => {
  const bound = fc.option(fc.integer({ min: -7, max: 7 }), { nil: undefined });
  const step = fc.option(
    fc.integer({ min: -4, max: 4 }).filter((value) => value !== 0),
    { nil: undefined },
  );
  const range = fc.record({ start: bound, stop: bound, step });
  const choice = fc.oneof({ weight: 3, arbitrary: range }, { weight: 1, arbitrary: fc.integer({ min: -5, max: 4 }) });
  const scenario = fc.record({
    shape: fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }),
    first: fc.array(choice, { maxLength: 4 }),
    second: fc.array(choice, { maxLength: 4 }),
    dtype: fc.constantFrom<DTypeName>('U8', 'BF16', 'F64'),
  });
  let compared = 0;
  fc.assert(
    fc.property(scenario, ({ shape, first, second, dtype }) => {
      const size = DTYPE_BITS[dtype] / 8;
      let frame = frameOf(shape, dtype);
      // The model: a shape and the numbers of its elements in order.
      let model = { shape, elements: Array.from({ length: frame.byteLength / size }, (_, i) => i) };
      for (const all of [first, second]) {
        const ranges = all.slice(0, model.shape.length);
        const inside = ranges.every((r, d) => typeof r !== 'number' || (r >= -model.shape[d]! && r < model.shape[d]!));
        if (!inside) {
          const sliced = frame;
          expect(() => sliced.slice(...ranges)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
          return;
        }
        frame = frame.slice(...ranges);
        model = sliceModel(model, ranges);
        expect(frame.shape).toEqual(model.shape);
        expect(frame.byteLength).toBe(model.elements.length * size);
        const bytes = bytesOf(frame);
        expect(bytes).toEqual(
          model.elements.flatMap((element) => Array.from({ length: size }, (_, i) => element * size + i)),
        );
        const [begin, end] = frame.dataOffsets;
        if (bytes.length === 0) expect(end).toBe(begin);
        else expect([begin - BASE, end - BASE]).toEqual([Math.min(...bytes), Math.max(...bytes) + 1]);
        expect(frame.isContiguous).toBe(runsOf(frame).length <= 1);
        ++compared;
      }
    }),
    { numRuns: 2000 },
  );
  expect(compared).toBeGreaterThan(500);
});

function sliceModel(model: { shape: number[]; elements: number[] }, ranges: SliceRange[]) {
  const picks = model.shape.map((size, d) => pythonSlice(size, ranges[d] ?? {}));
  let offsets = [0];
  picks.forEach((pick, d) => {
    offsets = offsets.flatMap((offset) => pick.map((i) => offset * model.shape[d]! + i));
  });
  return {
    shape: picks.map((pick) => pick.length).filter((_, d) => typeof ranges[d] !== 'number'),
    elements: offsets.map((offset) => model.elements[offset]!),
  };
}

test.each<[string, unknown[]]>([
  ['a step of 0', [{ step: 0 }]],
  ['too many ranges', [{}, {}, {}]],
  ['an index behind the end', [3]],
  ['an index before the start', [-4]],
  ['an index of an empty dimension', [0, 0]],
  ['a fraction', [1.5]],
  ['NaN', [Number.NaN]],
  ['a fraction as a start', [{ start: 0.5 }]],
  ['an infinite stop', [{ stop: Number.POSITIVE_INFINITY }]],
  ['a string', ['1']],
  ['null', [null]],
  ['undefined', [undefined]],
  ['a misspelled key', [{ begin: 1 }]],
])('%s is INVALID_ARGUMENT and names the tensor', (_, ranges) => {
  const call = () => frameOf([3, 0]).slice(...(ranges as SliceRange[]));
  expect(call).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', tensor: 'w' }));
});

describe('a dtype of less than a byte', () => {
  const frame = frameOf([4, 6], 'F4');

  test('is sliced on whole bytes', () => {
    expect(frame.slice(1)).toMatchObject({ byteLength: 3, dataOffsets: [BASE + 3, BASE + 6] });
    expect(bytesOf(frame.slice({}, { start: 2, stop: 4 }))).toEqual([1, 4, 7, 10]);
    expect(frame.slice({}, { stop: 0 })).toMatchObject({ shape: [4, 0], byteLength: 0 });
    expect(bytesOf(frameOf([4, 4], 'F6_E2M3').slice({ step: -2 }))).toEqual([9, 10, 11, 3, 4, 5]);
  });

  test.each<[SliceRange[]]>([
    [[0, 0]],
    [[{}, { start: 1 }]],
    [[{}, { stop: 3 }]],
    [[{}, { step: 2 }]],
    [[{}, { step: -1 }]],
  ])('is refused within a byte: %j', (ranges) => {
    expect(() => frame.slice(...ranges)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
