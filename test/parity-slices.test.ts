import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type SliceRange, TensorFrame } from 'fastsafetensors-node';

// 400 slices: a frame's shape is numpy's in each. fastsafetensors 0.5.0 says another one in more than half of them, for
// the two reasons below; any other difference is a failure. Recorded by parity/record_slices.py.

type Range = number | readonly [start: number | null, stop: number | null, step: number | null];
type Shape = readonly number[] | 'refused';
type Row = readonly [shape: number[], ranges: Range[], there: Shape, numpy: Shape];

const ROWS: readonly Row[] = JSON.parse(readFileSync(join(__dirname, '../fixtures/parity/slices.json'), 'utf8'));

const REASONS: Record<string, (row: Row) => boolean> = {
  'a number keeps its dimension there, with length 1': ([, ranges]) => ranges.some((r) => typeof r === 'number'),
  'a slice without elements has no shape there': ([, , there, numpy]) =>
    numpy.includes(0 as never) && there.length === 0,
};

function shapeHere([shape, ranges]: Row): Shape {
  const bytes = shape.reduce((a, b) => a * b, 1);
  const frame = new TensorFrame('w', 'U8', shape, [0, bytes]);
  const given = ranges.map((range): SliceRange => {
    if (typeof range === 'number') return range;
    const [start, stop, step] = range.map((bound) => bound ?? undefined);
    return { start, stop, step };
  });
  try {
    return frame.slice(...given).shape;
  } catch (error) {
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
    return 'refused';
  }
}

test('every slice has the shape that numpy gives', () => {
  expect(ROWS).toHaveLength(400);
  for (const row of ROWS) expect([row[0], row[1], shapeHere(row)]).toEqual([row[0], row[1], row[3]]);
});

test('where fastsafetensors says another shape, one of the reasons holds, and each is needed', () => {
  const other = ROWS.filter(([, , there, numpy]) => JSON.stringify(there) !== JSON.stringify(numpy));
  expect(other.length).toBeGreaterThan(100);
  for (const row of other) expect([row, Object.values(REASONS).some((holds) => holds(row))]).toEqual([row, true]);
  for (const [reason, holds] of Object.entries(REASONS)) {
    const alone = other.filter(
      (row) => holds(row) && Object.values(REASONS).every((one) => one === holds || !one(row)),
    );
    expect([reason, alone.length > 0]).toEqual([reason, true]);
  }
});
