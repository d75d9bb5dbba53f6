import * as fc from 'fast-check';
import { type DeviceTensor, loadFile, ParallelLoader, registerCopier } from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { patience } from '../src/transfer/budget-limit.js';
import { folder } from './support/budget-hooks.js';
import { layer, layeredModel } from './support/layered-model.js';
import { entry, writeModel } from './support/model-files.js';

// Budgets of several devices, which one loader loads to.

const KIB = 1024;
registerCopier('budgets-mock', mockCopier());

test('what one device lacks another does not, and a tensor too large for its device is named with it', async () => {
  const { files } = await layeredModel(folder);
  const deviceMemoryBudget = { 'cuda:0': 40 * KIB, 'cuda:1': 8 * KIB };
  const device = (name: string) => (name === 'model.norm.weight' ? 'cuda:1' : 'cuda:0');
  await using loader = new ParallelLoader({ files, deviceMemoryBudget, device });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  await expect(loadFile(files, { deviceMemoryBudget, devices: ['cuda:0', 'cuda:1'] })).rejects.toMatchObject({
    code: 'BUDGET_INFEASIBLE',
    message: expect.stringContaining('on cuda:1'),
  });
});

test('a device that is full waits for its turn while others load, and only its own consumer is told', async () => {
  patience.ms = 60;
  const entries = Array.from({ length: 16 }, (_, i) => entry(`layers.${i}`, 'U8', [30 * KIB]));
  const files = await writeModel(folder, entries);
  const options = { files, devices: ['cuda:0', 'cuda:1'], deviceMemoryBudget: 130 * KIB, queueSize: 100 };
  for (const copier of ['nogds', 'budgets-mock']) {
    // cuda:1 is full and stands still, longer than a consumer that holds all would have, while the next tensor of
    // cuda:0 is read.
    await using loader = new ParallelLoader({ ...options, copier, maxBytesPerSecond: 300 * KIB });
    let tensors = 0;
    for await (const [, tensor] of loader.iterateWeights()) {
      ++tensors;
      tensor.dispose();
    }
    expect(tensors).toBe(16);
    await using holding = new ParallelLoader({ ...options, copier });
    const held: DeviceTensor[] = [];
    const hold = async (): Promise<void> => {
      for await (const [name, tensor] of holding.iterateWeights()) {
        if (layer(`x.${name}.`) < 8) tensor.dispose();
        else held.push(tensor);
      }
    };
    await expect(hold()).rejects.toMatchObject({ code: 'BUDGET_INFEASIBLE', tensor: 'layers.12' });
    for (const tensor of held) tensor.dispose();
  }
});

test('as they arrive, too, who holds all of one device is told, though another waits for its window', async () => {
  patience.ms = 60;
  const entries = Array.from({ length: 24 }, (_, i) => entry(`t${i}`, 'U8', [8 * KIB]));
  const files = await writeModel(folder, entries);
  const device = (name: string): string => `cuda:${Number(name.slice(1)) % 2}`;
  for (const copier of ['nogds', 'budgets-mock']) {
    const deviceMemoryBudget = { 'cuda:1': 24 * KIB };
    const options = { files, device, deviceMemoryBudget, maxBatchBytes: 16 * KIB, order: 'ready' as const, copier };
    await using loader = new ParallelLoader(options);
    const held: DeviceTensor[] = [];
    const hold = async (): Promise<void> => {
      for await (const [, tensor] of loader.iterateWeights()) held.push(tensor);
    };
    await expect(hold()).rejects.toMatchObject({ code: 'BUDGET_INFEASIBLE' });
    for (const tensor of held) tensor.dispose();
  }
});

test('random plans and consumers over several devices: never a deadlock', async () => {
  patience.ms = 2000;
  const cases = fc.record({
    sizes: fc.array(fc.integer({ min: 1, max: 30_000 }), { minLength: 1, maxLength: 30 }),
    places: fc.array(fc.constantFrom('cpu', 'cuda:0', 'cuda:1'), { minLength: 30, maxLength: 30 }),
    room: fc.double({ min: 0, max: 3, noNaN: true }),
    order: fc.constantFrom('file' as const, 'ready' as const),
    maxBatchBytes: fc.constantFrom(undefined, 20_000),
    copier: fc.constantFrom('nogds', 'budgets-mock'),
  });
  await fc.assert(
    fc.asyncProperty(cases, async ({ sizes, places, room, ...options }) => {
      const entries = sizes.map((size, i) => entry(`t${i}`, 'U8', [size]));
      const files = await writeModel(folder, entries);
      const budget = Math.floor(Math.max(...sizes) * (1 + room)) + 256;
      const device = (name: string): string => places[Number(name.slice(1))]!;
      await using loader = new ParallelLoader({ files, device, deviceMemoryBudget: budget, ...options });
      let tensors = 0;
      for await (const [name, tensor] of loader.iterateWeights()) {
        expect(Buffer.compare(await tensor.toHost(), entries[Number(name.slice(1))]!.bytes)).toBe(0);
        tensor.dispose();
        ++tensors;
      }
      expect(tensors).toBe(sizes.length);
    }),
    { numRuns: 60 },
  );
});
