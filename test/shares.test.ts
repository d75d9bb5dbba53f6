import fc from 'fast-check';
import { type SharedTensor, sharesOf } from '../src/transfer/shares.js';

const tensors = fc.array(
  fc
    .record({ rows: fc.integer({ min: 1, max: 50 }), each: fc.integer({ min: 1, max: 1000 }) })
    .map(({ rows, each }): SharedTensor => ({ rows, bytes: rows * each })),
  { maxLength: 30 },
);
const ranks = fc.integer({ min: 1, max: 64 });

test('shares cover every row of every tensor once, in the order of tensors and ranks', () => {
  fc.assert(
    fc.property(tensors, ranks, (list, size) => {
      const shares = sharesOf(list, size);
      for (const [tensor, { rows }] of list.entries()) {
        const of = shares.filter((share) => share.tensor === tensor);
        expect(of.flatMap(({ start, stop }) => [start, stop])).toEqual([
          0,
          ...of.slice(1).flatMap(({ start }) => [start, start]),
          rows,
        ]);
        expect(of.every(({ start, stop }) => start < stop)).toBe(true);
      }
      const order = shares.map(({ tensor, rank }) => tensor * size + rank);
      expect(order).toEqual([...order].sort((a, b) => a - b));
      const byRank = shares.map(({ rank }) => rank);
      expect(byRank).toEqual([...byRank].sort((a, b) => a - b)); // a run of each
    }),
  );
});

test('no rank has more than its part and a row', () => {
  fc.assert(
    fc.property(tensors, ranks, (list, size) => {
      const total = list.reduce((sum, { bytes }) => sum + bytes, 0);
      const row = Math.max(0, ...list.map(({ bytes, rows }) => bytes / rows));
      const byRank = new Array<number>(size).fill(0);
      for (const { tensor, rank, start, stop } of sharesOf(list, size))
        byRank[rank]! += (list[tensor]!.bytes / list[tensor]!.rows) * (stop - start);
      expect(byRank.reduce((sum, bytes) => sum + bytes, 0)).toBeCloseTo(total, 3);
      expect(Math.max(...byRank)).toBeLessThanOrEqual(total / size + row + 1e-6);
    }),
  );
});
