import * as fc from 'fast-check';
import { type DTypeName, expertParallelFilter, SafeTensorsMetadata } from 'fastsafetensors-node';
import { blockOf, partOf } from '../src/transfer/parts.js';
import { Plan } from '../src/transfer/plan.js';
import { selectTensors } from '../src/transfer/select-tensors.js';
import { BITS, encodeFile } from './support/model-files.js';

// Of any model, the plans of all ranks together read every byte once: nothing is left out, nothing read twice.

interface Tensor {
  name: string;
  dtype: DTypeName;
  shape: number[];
  dim: number;
}

const tensors = fc.array(
  fc
    .record({
      dtype: fc.constantFrom(...(Object.keys(BITS) as DTypeName[])),
      shape: fc.array(fc.oneof({ weight: 5, arbitrary: fc.nat({ max: 9 }) }, fc.integer({ min: 60, max: 130 })), {
        maxLength: 3,
      }),
      expert: fc.option(fc.nat({ max: 4 }), { nil: undefined }),
      dim: fc.nat(),
    })
    .map(({ dtype, shape: some, expert, dim }, i = 0) => {
      // Of dtypes smaller than a byte, whole bytes for every index of every dimension but the last.
      const shape = BITS[dtype] < 8 ? [...some, 4] : some;
      const dims = BITS[dtype] < 8 ? shape.length - 1 : shape.length;
      return { dtype, shape, expert, dim: dims === 0 || dim % 5 === 4 ? -1 : dim % dims, i };
    }),
  { minLength: 1, maxLength: 8 },
);

const models = fc.record({
  files: fc.array(tensors, { minLength: 1, maxLength: 3 }),
  size: fc.oneof(fc.integer({ min: 2, max: 9 }), fc.integer({ min: 2, max: 64 })),
  experts: fc.boolean(),
  batchBytes: fc.constantFrom(Number.POSITIVE_INFINITY, 1000),
});

test('exact cover, no overlap, aligned', async () => {
  await fc.assert(
    fc.asyncProperty(models, async ({ files, size, experts, batchBytes }) => {
      let next = 0;
      const named = files.map((file) =>
        file.map(({ dtype, shape, expert, dim }): Tensor => {
          const name = expert === undefined ? `t${next++}` : `t${next++}.experts.${expert}.w`;
          return { name, dtype, shape, dim };
        }),
      );
      const headers = await Promise.all(
        named.map((file) => {
          const entries = file.map(({ name, dtype, shape }) => {
            const bytes = new Uint8Array((shape.reduce((product, each) => product * each, 1) * BITS[dtype]) / 8);
            return { name, dtype, shape, bytes };
          });
          return SafeTensorsMetadata.fromBuffer(encodeFile(entries));
        }),
      );
      const dims = new Map(named.flat().map(({ name, dim }) => [name, dim]));
      const whole = headers.map((metadata) => ({ metadata, selection: null }));
      const covered = headers.map(({ sizeBytes }) => new Uint8Array(sizeBytes));
      for (let rank = 0; rank < size; ++rank) {
        const filter = expertParallelFilter({ numExperts: 5, size, rank });
        const inputs = experts ? await selectTensors(whole, filter) : whole;
        const plan = await Plan.ofTensors(inputs, {
          batchBytes,
          partOf: (metadata, tensor) => {
            const frame = metadata.frameAt(tensor);
            // With experts by rank, their tensors are whole.
            const dim = experts && /experts/.test(frame.name) ? -1 : dims.get(frame.name)!;
            if (dim === -1) return null;
            return partOf(frame, metadata.dataStart, blockOf(dim, frame.shape[dim]!, { rank, size }));
          },
        });
        const ends = new Float64Array(plan.allocationSizes.length);
        for (let item = 0; item < plan.count; ++item) {
          const { run, stride } = plan.parts![item] ?? { run: 0, stride: 0 };
          const length = plan.lengths[item]!;
          const each = run || length;
          const { name } = plan.metadataOf(item).frameAt(plan.tensors[item]!);
          const shared = dims.get(name) !== -1 && !(experts && /experts/.test(name));
          const counted = shared || rank === 0 || (experts && /experts/.test(name));
          for (let done = 0, at = plan.offsets[item]!; done < length; done += each, at += stride) {
            for (let byte = at; byte < at + each; ++byte) covered[plan.files[item]!]![byte]! += counted ? 1 : 0;
          }
          if (run > 0) expect(stride).toBeGreaterThan(run);
          const elements = plan.shapeOf(item).reduce((product, size) => product * size, 1);
          expect((elements * BITS[plan.dtypeOf(item)]) / 8).toBe(length);
          const allocation = plan.allocations[item]!;
          expect(plan.destinations[item]! % 256).toBe(0);
          if (length > 0) expect(plan.destinations[item]!).toBeGreaterThanOrEqual(ends[allocation]!);
          ends[allocation] = Math.max(ends[allocation]!, plan.destinations[item]! + length);
          expect(ends[allocation]).toBeLessThanOrEqual(plan.allocationSizes[allocation]!);
        }
        expect(plan.bytes).toBe(plan.lengths.reduce((sum, each) => sum + each, 0));
      }
      for (const [file, { dataStart }] of headers.entries()) {
        const bytes = covered[file]!;
        expect(bytes.subarray(0, dataStart).every((count) => count === 0)).toBe(true);
        expect(bytes.subarray(dataStart).every((count) => count === 1)).toBe(true);
      }
    }),
    { numRuns: 150 },
  );
});
