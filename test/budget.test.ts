import * as fc from 'fast-check';
import {
  type DeviceMemoryLimit,
  type DeviceTensor,
  fastsafeOpen,
  type LoaderOptions,
  loadFile,
  nativeMetrics,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import { patience } from '../src/transfer/budget-limit.js';
import { folder } from './support/budget-hooks.js';
import { type Entry, entry, writeModel } from './support/model-files.js';
import { refused } from './support/refused.js';

// What a loader may hold: deviceMemoryBudget and hostMemoryBudget.

const KIB = 1024;
registerCopier('budget-mock', mockCopier());
const WAYS: Record<string, LoaderOptions> = {
  'the host': {},
  'the host through slots': { staging: 'always' },
  'a device': { device: 'cuda:0' },
  'a device from the page cache': { device: 'cuda:0', staging: 'mapped', bounceBufferSize: 8192 },
  'a copier of the user': { copier: 'budget-mock' },
};

/** Bytes of tensors and, on the host, of staging. */
function heldNow(device = 'cpu'): number {
  const { hostBytes, deviceBytes, stagingBytes } = nativeMetrics();
  return device === 'cpu' ? hostBytes + stagingBytes : deviceBytes;
}

async function shards(count: number, tensors: number, bytes: number): Promise<[string[], Entry[]]> {
  const entries = Array.from({ length: count }, (_, file) =>
    Array.from({ length: tensors }, (_, i) => entry(`${file}.${i}`, 'U8', [bytes])),
  );
  const paths = await Promise.all(entries.map((each, file) => writeModel(folder, each, `${file}.safetensors`)));
  return [paths, entries.flat()];
}

describe.each(Object.entries(WAYS))('on %s', (_, options) => {
  test('a consumer that disposes gets every tensor of shards larger than the budget', async () => {
    const [files, entries] = await shards(5, 10, 20 * KIB);
    const budget = 150 * KIB;
    await using loader = new ParallelLoader({ files, deviceMemoryBudget: budget, ...options });
    let most = 0;
    const timer = setInterval(() => {
      most = Math.max(most, heldNow(options.device as string));
    }, 1);
    let next = 0;
    for await (const [name, tensor] of loader.iterateWeights()) {
      most = Math.max(most, heldNow(options.device as string));
      expect(name).toBe(entries[next]!.name);
      expect(Buffer.compare(await tensor.toHost(), entries[next++]!.bytes)).toBe(0);
      tensor.dispose();
    }
    clearInterval(timer);
    expect(next).toBe(entries.length);
    expect(most).toBeLessThanOrEqual(budget);
    expect(most).toBeGreaterThan(20 * KIB);
  });

  test('a tensor larger than the budget is BUDGET_INFEASIBLE: tensor, file, bytes and what to do', async () => {
    const path = await writeModel(folder, [entry('small', 'U8', [100]), entry('large', 'U8', [300 * KIB])]);
    await using loader = new ParallelLoader({ files: path, deviceMemoryBudget: 200 * KIB, ...options });
    const failed = loader.iterateWeights().next();
    await expect(failed).rejects.toMatchObject({ code: 'BUDGET_INFEASIBLE', tensor: 'large', path });
    await expect(failed).rejects.toThrow(
      /"large" takes 307200 bytes, and deviceMemoryBudget allows 204800 bytes .*(?:raise it).*filter/,
    );
    await expect(loadFile(path, { deviceMemoryBudget: 200 * KIB, ...options })).rejects.toMatchObject({
      code: 'BUDGET_INFEASIBLE',
    });
  });

  test('a consumer that holds everything is told BUDGET_INFEASIBLE and what is held', async () => {
    patience.ms = 50;
    const [files] = await shards(3, 10, 20 * KIB);
    await using loader = new ParallelLoader({ files, deviceMemoryBudget: 300 * KIB, ...options });
    const kept: DeviceTensor[] = [];
    const all = (async () => {
      for await (const [, tensor] of loader.iterateWeights()) kept.push(tensor);
    })();
    const error = await all.catch((reason) => reason);
    const next = `${Math.floor(kept.length / 10)}.${kept.length % 10}`;
    expect(error).toMatchObject({ code: 'BUDGET_INFEASIBLE', tensor: next, path: files[Number(next[0])] });
    expect(error.message).toMatch(/\d+ of the 307200 that deviceMemoryBudget allows are held.*dispose/);
    expect(kept.length).toBeGreaterThan(3);
    for (const tensor of kept) tensor.dispose();
  });

  test('who disposes late, from elsewhere, is waited for', async () => {
    patience.ms = 400;
    const [files, entries] = await shards(3, 8, 20 * KIB);
    await using loader = new ParallelLoader({ files, deviceMemoryBudget: 250 * KIB, ...options });
    let tensors = 0;
    for await (const [, tensor] of loader.iterateWeights()) {
      ++tensors;
      setTimeout(() => tensor.dispose(), 30);
    }
    expect(tensors).toBe(entries.length);
    await new Promise((resolve) => setTimeout(resolve, 50));
  });

  test('a whole load that cannot fit is refused before anything is allocated', async () => {
    const [files] = await shards(2, 5, 20 * KIB);
    await using loader = new SafeTensorsFileLoader({ deviceMemoryBudget: 180 * KIB, ...options });
    await loader.addFilenames(files);
    const failed = loader.copyFilesToDevice();
    await expect(failed).rejects.toMatchObject({ code: 'BUDGET_INFEASIBLE' });
    await expect(failed).rejects.toThrow(/take 204800 bytes together.*ParallelLoader/);
    loader.reset();
    await loader.addFilenames(files[0]!);
    await using buffer = await loader.copyFilesToDevice();
    expect(buffer.keys()).toHaveLength(5);
  });
});

test('fastsafeOpen: tensors that are held count, and one that has no room is told so', async () => {
  patience.ms = 50;
  const [[file]] = await shards(1, 5, 20 * KIB);
  await using opened = await fastsafeOpen(file!, { deviceMemoryBudget: 50 * KIB });
  const kept = [await opened.getTensor('0.0'), await opened.getTensor('0.1')];
  await expect(opened.getTensor('0.2')).rejects.toMatchObject({ code: 'BUDGET_INFEASIBLE', tensor: '0.2' });
  kept.pop()!.dispose();
  kept.push(await opened.getTensor('0.2'));
  for (const tensor of kept) tensor.dispose();
});

test('hostMemoryBudget is a budget of the host, and limits the staging of loads to a GPU', async () => {
  const [files, entries] = await shards(2, 10, 40 * KIB);
  await using host = new ParallelLoader({ files, hostMemoryBudget: 160 * KIB });
  for await (const [, tensor] of host.iterateWeights()) {
    expect(heldNow()).toBeLessThanOrEqual(160 * KIB);
    tensor.dispose();
  }
  await using gpu = new ParallelLoader({ files, device: 'cuda:0', hostMemoryBudget: 256 * KIB });
  let tensors = 0;
  for await (const [, tensor] of gpu.iterateWeights()) {
    ++tensors;
    expect(nativeMetrics().stagingBytes).toBeLessThanOrEqual(256 * KIB);
    tensor.dispose();
  }
  expect(tensors).toBe(entries.length);
  await using small = new ParallelLoader({ files, device: 'cuda:0', hostMemoryBudget: 1000 });
  await expect(small.iterateWeights().next()).rejects.toMatchObject({ code: 'BUDGET_INFEASIBLE' });
});

test('percentages, and limits by device', async () => {
  const [files] = await shards(1, 2, 40 * KIB);
  const load = async (options: LoaderOptions): Promise<number> => {
    await using loader = new ParallelLoader({ files, ...options });
    let tensors = 0;
    for await (const [, tensor] of loader.iterateWeights()) {
      ++tensors;
      tensor.dispose();
    }
    return tensors;
  };
  const right: DeviceMemoryLimit[] = ['80%', '0.5%', { 'cuda:0': 10 }, { cpu: '50%', 'cuda:1': 1 }];
  for (const deviceMemoryBudget of right) {
    expect(await load({ deviceMemoryBudget })).toBe(2);
  }
  useFakeDevices({ memoryLimit: 100 * KIB });
  expect(await load({ device: 'cuda:0', deviceMemoryBudget: '90%' })).toBe(2);
  await expect(load({ device: 'cuda:0', deviceMemoryBudget: '30%' })).rejects.toThrow(/allows 30720 bytes on cuda:0/);
  await expect(load({ device: 'cuda', deviceMemoryBudget: { 'cuda:0': KIB } })).rejects.toMatchObject({
    code: 'BUDGET_INFEASIBLE',
  });
  for (const wrong of [0, -1, 1.5, '0%', '101%', 'half', null, [], { cpu: 0 }, { cuda: '1' }, { gpus: 1 }]) {
    await refused(() => new ParallelLoader({ files, deviceMemoryBudget: wrong as never }));
  }
  await refused(() => new SafeTensorsFileLoader({ hostMemoryBudget: {} as never }));
});

// A consumer keeps some tensors for a while; with the least budget that this can need, and more.
const cases = fc.record({
  sizes: fc.array(fc.integer({ min: 1, max: 40_000 }), { minLength: 1, maxLength: 30 }),
  keep: fc.nat({ max: 4 }),
  room: fc.double({ min: 0, max: 3, noNaN: true }),
  later: fc.boolean(),
  stopAt: fc.option(fc.nat({ max: 30 }), { nil: undefined }),
  order: fc.constantFrom('file' as const, 'ready' as const),
  device: fc.constantFrom('cpu', 'cuda:0'),
  maxBatchBytes: fc.constantFrom(undefined, 50_000),
});

test('200 random plans and consumers: never above the budget, never a deadlock', async () => {
  let infeasible = 0;
  let complete = 0;
  await fc.assert(
    fc.asyncProperty(cases, async ({ sizes, keep, room, later, stopAt, ...options }) => {
      const entries = sizes.map((size, i) => entry(`t${i}`, 'U8', [size]));
      const half = Math.ceil(entries.length / 2);
      const files = [
        await writeModel(folder, entries.slice(0, half), 'a'),
        await writeModel(folder, entries.slice(half), 'b'),
      ];
      const budget = Math.floor(Math.max(...sizes) * (1 + room)) + 256;
      patience.ms = keep > 0 ? 30 : 30_000; // who keeps nothing is waited for, however busy the machine is
      await using loader = new ParallelLoader({ files, deviceMemoryBudget: budget, ...options });
      const kept: DeviceTensor[] = [];
      let tensors = 0;
      try {
        for await (const [name, tensor] of loader.iterateWeights()) {
          expect(heldNow(options.device as string)).toBeLessThanOrEqual(budget);
          expect(Buffer.compare(await tensor.toHost(), entries[Number(name.slice(1))]!.bytes)).toBe(0);
          kept.push(tensor);
          if (++tensors === stopAt) break;
          while (kept.length > keep) {
            const oldest = kept.shift()!;
            if (later) setTimeout(() => oldest.dispose(), 2);
            else oldest.dispose();
          }
        }
        if (stopAt === undefined || tensors < stopAt) expect(tensors).toBe(entries.length);
        ++complete;
      } catch (error) {
        expect(error).toMatchObject({ code: 'BUDGET_INFEASIBLE' });
        expect(keep).toBeGreaterThan(0);
        ++infeasible;
      }
      for (const tensor of kept) tensor.dispose();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }),
    { numRuns: 200 },
  );
  expect(Math.min(infeasible, complete)).toBeGreaterThan(10);
}, 120_000);

test('what of a mapped file gets memory is cut as without a mapping', async () => {
  const entries = Array.from({ length: 16 }, (_, i) => entry(`t${i}`, 'F32', [128 * KIB]));
  const file = await writeModel(folder, entries); // 8 MiB, 4 MiB as BF16
  await using loader = new ParallelLoader({ files: file, dtype: 'BF16', hostMemoryBudget: 2 << 20, mmap: 'auto' });
  let most = 0;
  let count = 0;
  for await (const [, tensor] of loader) {
    most = Math.max(most, heldNow());
    ++count;
    tensor.dispose();
  }
  expect(count).toBe(16);
  expect(most).toBeLessThanOrEqual(2 << 20);
});

test('small lazy reads count, too', async () => {
  patience.ms = 20;
  const entries = Array.from({ length: 20 }, (_, i) => entry(`t${i}`, 'U8', [64 * KIB]));
  const file = await writeModel(folder, entries);
  await using files = await fastsafeOpen(file, { hostMemoryBudget: 512 * KIB });
  const kept: DeviceTensor[] = [];
  const all = async (): Promise<void> => {
    for (const { name } of entries) kept.push(await files.getTensor(name));
  };
  await expect(all()).rejects.toMatchObject({ code: 'BUDGET_INFEASIBLE' });
  expect(heldNow()).toBeLessThanOrEqual(512 * KIB);
  for (const tensor of kept) tensor.dispose();
});
