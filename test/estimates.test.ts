import { setTimeout } from 'node:timers/promises';
import * as fc from 'fast-check';
import {
  type DeviceTensor,
  type LoaderOptions,
  nativeMetrics,
  ParallelLoader,
  type ParallelOptions,
  SafeTensorsFileLoader,
  type ShardRules,
} from 'fastsafetensors-node';
import { expectStaging, tensorBytes } from './support/device.js';
import { folder } from './support/fake-device-hooks.js';
import { layer, layeredModel } from './support/layered-model.js';
import { type Entry, entry, writeModel } from './support/model-files.js';

// What streams and the plans of ranks will take, beside what they then take. Of whole loads: files-buffer.test.ts.

const KIB = 1024;
const SEVERAL: LoaderOptions = { device: (name) => (layer(name) % 2 ? 'cuda:1' : 'cuda:0'), staging: 'always' };

/** Takes all tensors of a stream; the most that was held when one came. */
async function streamed(tensors: AsyncIterable<[string, DeviceTensor]>, keep = false): Promise<number> {
  const kept: DeviceTensor[] = [];
  let most = 0;
  for await (const [, tensor] of tensors) {
    most = Math.max(most, tensorBytes());
    if (keep) kept.push(tensor);
    else tensor.dispose();
  }
  most = Math.max(most, tensorBytes());
  for (const tensor of kept) tensor.dispose();
  return most;
}

/** Stops at its first tensor until so many bytes are held; what is held a moment later. */
async function readAhead(tensors: AsyncIterable<[string, DeviceTensor]>, bytes: number): Promise<number> {
  for await (const [, tensor] of tensors) {
    using _ = tensor;
    while (tensorBytes() < bytes) await setTimeout(2);
    await setTimeout(20);
    return tensorBytes();
  }
  return 0;
}

describe.each<ParallelOptions['order'] & string>(['file', 'ready'])('a stream in the order %p', (order) => {
  const options = { order, maxBatchBytes: 30 * KIB, queueSize: 1, mmap: false } as const;

  test('holds what was estimated, and no more', async () => {
    const files = await writeModel(
      folder,
      Array.from({ length: 20 }, (_, i) => entry(`t${i}`, 'U8', [10 * KIB])),
    );
    for (const to of [{}, { device: 'cuda:0', staging: 'always' }] as const) {
      await using loader = new ParallelLoader({ files, ...options, ...to });
      const estimate = await loader.estimate();
      expect(estimate).toMatchObject({ deviceBytes: 200 * KIB, streamedBytes: 90 * KIB, tensors: 20 });
      expect(await readAhead(loader.iterateWeights(), estimate.streamedBytes)).toBe(90 * KIB);
      expect(await streamed(loader.iterateWeights())).toBeLessThanOrEqual(90 * KIB);
      if ('staging' in to) expectStaging(nativeMetrics().stagingBytes, estimate);
      expect(await streamed(loader.iterateWeights(), true)).toBe(200 * KIB);
    }
  });

  test('on several devices, of each', async () => {
    const { files, entries } = await layeredModel(folder);
    await using loader = new ParallelLoader({ files, ...options, ...SEVERAL, maxBatchBytes: 8 * KIB });
    const { devices, ...all } = await loader.estimate();
    expect(Object.keys(devices!).sort()).toEqual(['cuda:0', 'cuda:1']);
    const { 'cuda:0': even, 'cuda:1': odd } = devices as Record<string, typeof all>;
    expect(even!.deviceBytes + odd!.deviceBytes).toBe(all.deviceBytes);
    expect(even!.streamedBytes + odd!.streamedBytes).toBe(all.streamedBytes);
    expect(even!.tensors + odd!.tensors).toBe(entries.length);
    for (const each of [even!, odd!]) expect(each.streamedBytes).toBeLessThan(each.deviceBytes);
    expect(await streamed(loader.iterateWeights())).toBeLessThanOrEqual(all.streamedBytes);
    expect(await streamed(loader.iterateWeights(), true)).toBe(all.deviceBytes);
  });

  test('any model, window and budget', async () => {
    const budgetBytes = 60 * KIB;
    const models = fc.record({
      sizes: fc.array(fc.nat({ max: 6000 }), { minLength: 1, maxLength: 30 }),
      maxBatchBytes: fc.integer({ min: 1, max: 30_000 }),
      queueSize: fc.nat({ max: 3 }),
      budget: fc.boolean(),
      several: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(models, async ({ sizes, maxBatchBytes, queueSize, budget, several }) => {
        const files = await writeModel(
          folder,
          sizes.map((size, i) => entry(`layers.${i}.w`, 'U8', [size])),
        );
        const limit = budget ? { deviceMemoryBudget: budgetBytes } : {};
        const given = { files, order, maxBatchBytes, queueSize, ...limit, ...(several ? SEVERAL : {}) };
        await using loader = new ParallelLoader(given);
        const { streamedBytes, deviceBytes } = await loader.estimate();
        if (budget) expect(streamedBytes).toBeLessThanOrEqual(several ? 2 * budgetBytes : budgetBytes);
        expect(await streamed(loader.iterateWeights())).toBeLessThanOrEqual(streamedBytes);
        if (!budget) expect(await streamed(loader.iterateWeights(), true)).toBe(deviceBytes);
      }),
      { numRuns: 40 },
    );
  });
});

test('filter and dtype count, what is wrong is told, and nothing of it is in a report', async () => {
  const files = await writeModel(folder, [entry('a', 'F16', [1000]), entry('b', 'F16', [500])]);
  await using loader = new ParallelLoader({ files, filter: (name) => name === 'b', dtype: 'F32', mmap: false });
  expect(await loader.estimate()).toMatchObject({
    deviceBytes: 2000,
    streamedBytes: 2000,
    largestBytes: 2000,
    tensors: 1,
  });
  expect(loader.report).toMatchObject({ files: 0, tensors: 0 });
  await using none = new ParallelLoader({ files, filter: () => false });
  expect(await none.estimate()).toMatchObject({ deviceBytes: 0, streamedBytes: 0, tensors: 0 });
  await using missing = new ParallelLoader({ files: `${files}x` });
  await expect(missing.estimate()).rejects.toMatchObject({ code: 'IO_ERROR' });
  await expect((loader.estimate as (x: unknown) => Promise<unknown>)({})).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  });
  await loader.close();
  await expect(loader.estimate()).rejects.toMatchObject({ code: 'CLOSED' });
});

test('a budget of less than the largest tensor is infeasible, of that and a sixteenth enough', async () => {
  const sizes = [30, 70, 50, 70, 10].map((kib) => kib * KIB);
  const files = await writeModel(
    folder,
    sizes.map((size, i) => entry(`t${i}`, 'U8', [size])),
  );
  const { largestBytes, streamedBytes } = await new ParallelLoader({ files }).estimate();
  expect([largestBytes, streamedBytes]).toEqual([70 * KIB, 230 * KIB]);
  await using enough = new ParallelLoader({ files, deviceMemoryBudget: Math.ceil((largestBytes * 16) / 15) });
  expect((await enough.estimate()).streamedBytes).toBeLessThan(80 * KIB);
  expect(await streamed(enough.iterateWeights())).toBeLessThan(80 * KIB);
  await using less = new ParallelLoader({ files, deviceMemoryBudget: largestBytes - 1 });
  await expect(streamed(less.iterateWeights())).rejects.toMatchObject({ code: 'BUDGET_INFEASIBLE' });
});

describe('the plan of a rank', () => {
  const MODEL: Entry[] = [
    entry('layers.0.q', 'BF16', [8, 96]),
    entry('layers.1.wide', 'U8', [3, 40_000]),
    entry('layers.2.k', 'F32', [6, 97]),
    entry('layers.3.norm', 'F32', [33]),
  ];
  const RULES: ShardRules = { '*.q': 0, '*.wide': 1, '*.k': { dim: 1, start: 5, stop: 50 }, '*.norm': -1 };
  const WAYS: Record<string, LoaderOptions> = {
    'the host': {},
    'a device': { device: 'cuda:0', staging: 'always' },
    'several devices': SEVERAL,
    'another dtype': { dtype: 'F32', dtypePolicy: 'convertible' },
  };

  async function open(options: LoaderOptions): Promise<SafeTensorsFileLoader> {
    const loader = new SafeTensorsFileLoader(options);
    await loader.addFilenames(await writeModel(folder, MODEL));
    return loader;
  }

  test.each(Object.entries(WAYS))('to %s: what it takes, of its own bytes alone', async (_, way) => {
    for (const size of [2, 5]) {
      for (let rank = 0; rank < size; ++rank) {
        await using loader = await open({ ...way, pg: { rank, size } });
        const estimate = await loader.estimateShardedPlan(RULES);
        const whole = loader.estimate();
        expect(estimate.deviceBytes).toBeLessThan(whole.deviceBytes);
        expect(estimate.tensors).toBe(MODEL.length);
        await using buffer = await loader.copyFilesToDevice();
        expect(await streamed(buffer.shardedPlan(RULES), true)).toBe(estimate.deviceBytes);
        if (way.staging) expectStaging(nativeMetrics().stagingBytes, estimate);
        expect(await streamed(buffer.shardedPlan(RULES))).toBeLessThanOrEqual(estimate.streamedBytes);
        const sums = Object.values(estimate.devices ?? {});
        if (sums.length === 0) continue;
        expect(sums.reduce((sum, each) => sum + each.deviceBytes, 0)).toBe(estimate.deviceBytes);
      }
    }
  });

  test('of names and dimensions, as asDict and getSharded take them', async () => {
    await using loader = await open({ pg: { rank: 1, size: 3 } });
    const dims = { 'layers.1.wide': 1, 'layers.3.norm': -1 };
    const { deviceBytes, tensors } = await loader.estimateShardedPlan(dims);
    await using buffer = await loader.copyFilesToDevice();
    const dict = await buffer.asDict(dims);
    expect([tensorBytes(), dict.size]).toEqual([deviceBytes, tensors]);
    for (const tensor of dict.values()) tensor.dispose();
    const one = await loader.estimateShardedPlan({ 'layers.2.k': 1 });
    using part = await buffer.getSharded('layers.2.k', 1);
    expect([tensorBytes(), part.byteLength]).toEqual([one.deviceBytes, one.deviceBytes]);
  });

  test.each(Object.entries(WAYS))(
    'of one rank to %s: all is loaded, and parts are copied out of it',
    async (_, way) => {
      await using loader = await open({ ...way, mmap: false });
      const estimate = await loader.estimateShardedPlan(RULES);
      await using buffer = await loader.copyFilesToDevice();
      expect(tensorBytes()).toBe(loader.estimate().deviceBytes);
      expect(await streamed(buffer.shardedPlan(RULES), true)).toBe(estimate.deviceBytes);
      const ofDevices = Object.values(estimate.devices ?? { cpu: estimate });
      expect(ofDevices.reduce((sum, each) => sum + each.deviceBytes, 0)).toBe(estimate.deviceBytes);
      for (const [name, whole] of Object.entries(loader.estimate().devices ?? {}))
        expect(estimate.devices![name]!.tensors).toBe(whole.tensors);
      expect(estimate.tensors).toBe(MODEL.length);
      const most = await streamed(buffer.shardedPlan(RULES));
      if (estimate.devices) expect(most).toBeLessThanOrEqual(estimate.streamedBytes);
      else expect(most).toBe(estimate.streamedBytes);
    },
  );

  test('what does not fit, or is not there, is told as by the plan itself', async () => {
    await using loader = await open({ pg: { rank: 0, size: 2 } });
    await expect(loader.estimateShardedPlan({ none: 0 })).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
    await expect(loader.estimateShardedPlan({ 'layers.0.q': 7 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const nothing = { deviceBytes: 0, streamedBytes: 0, largestBytes: 0, stagingBytes: 0, tensors: 0 };
    expect(await loader.estimateShardedPlan({})).toEqual(nothing);
    loader.reset();
    await expect(loader.estimateShardedPlan({})).rejects.toMatchObject({ code: 'NO_FILES' });
    await loader.close();
    await expect(loader.estimateShardedPlan({})).rejects.toMatchObject({ code: 'CLOSED' });
  });
});
