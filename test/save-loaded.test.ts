import { readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { type DeviceTensor, ParallelLoader, SafeTensorsFileLoader, saveFile } from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { type Entry, entry, models, newFolder, writeModel } from './support/model-files.js';

// load → save: what loaders hand out is written as it is.

let folder: string;
let saved: string;
beforeAll(() => useFakeDevices({ copyDelayUs: 0 }));
afterAll(() => useFakeDevices(null));
beforeEach(async () => {
  folder = await newFolder();
  saved = join(folder, 'saved.safetensors');
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true }); // typed arrays
});

async function load(files: string, device: string): Promise<DeviceTensor[]> {
  const tensors: DeviceTensor[] = [];
  const loader = new ParallelLoader({ files, device });
  for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
  await loader.close();
  return tensors;
}

function dispose(tensors: Iterable<DeviceTensor>): void {
  for (const tensor of tensors) tensor.dispose();
}

test.each(['cpu', 'cuda:0'])('tensors of every dtype and shape are saved as they were loaded, %s', async (device) => {
  const entriesOf = models.map(({ files }) => files[0]!.entries);
  await fc.assert(
    fc.asyncProperty(entriesOf, async (entries) => {
      const tensors = await load(await writeModel(folder, entries), device);
      await saveFile(tensors, saved);
      dispose(tensors);
      const again = await load(saved, 'cpu');
      const found = await Promise.all(
        again.map(async ({ name, dtype, shape, data }) => {
          const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
          return { name, dtype, shape: [...shape], bytes: Buffer.from(bytes) };
        }),
      );
      dispose(again);
      const byName = (a: Entry, b: Entry): number => (a.name < b.name ? -1 : 1);
      expect(found.sort(byName)).toEqual(entries.map((e) => ({ ...e, bytes: Buffer.from(e.bytes) })).sort(byName));
      await saveFile(await Promise.all(found.map(({ bytes, ...rest }) => ({ ...rest, data: bytes }))), `${saved}.2`);
      expect(readFileSync(`${saved}.2`).equals(readFileSync(saved))).toBe(true);
    }),
    { numRuns: 15 },
  );
});

test('a buffer is saved by the names that its record gives', async () => {
  const path = await writeModel(folder, [entry('a', 'F16', [3, 5]), entry('b', 'I64', [])]);
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(path);
  const buffers = await loader.copyFilesToDevice();
  const tensors = await buffers.asDict({ a: -1, b: -1 });
  await saveFile(tensors, saved);
  await saveFile({ renamed: tensors.get('a')! }, `${saved}.2`);
  const again = await load(saved, 'cpu');
  expect(again.map(({ name }) => name).sort()).toEqual(['a', 'b']);
  for (const tensor of again) expect(tensor.data).toEqual(tensors.get(tensor.name)!.data);
  const renamed = await load(`${saved}.2`, 'cpu');
  expect(renamed.map(({ name, shape }) => [name, shape])).toEqual([['renamed', [3, 5]]]);
  dispose([...again, ...renamed, ...tensors.values()]);
  await buffers.close();
  await loader.close();
});

test('a tensor larger than what is copied from a device at a time', async () => {
  const large = entry('large', 'U8', [40 * 2 ** 20 + 7]);
  const path = await writeModel(folder, [large]);
  const tensors = await load(path, 'cuda:0');
  await saveFile(tensors, saved);
  expect(readFileSync(saved).subarray(-large.bytes.length).equals(large.bytes)).toBe(true);
  dispose(tensors);
});

test('a tensor that was disposed is CLOSED, and nothing is written', async () => {
  const tensors = await load(await writeModel(folder, [entry('a', 'U8', [3])]), 'cpu');
  dispose(tensors);
  await expect(saveFile(tensors, saved)).rejects.toMatchObject({ code: 'CLOSED', tensor: 'a' });
  expect(() => readFileSync(saved)).toThrow('ENOENT');
});

test('a tensor that is disposed while it is written is CLOSED, and the old file stays', async () => {
  const path = await writeModel(folder, [entry('a', 'U8', [40 * 2 ** 20])]);
  const before = readFileSync(path);
  const tensors = await load(path, 'cuda:0');
  const saving = saveFile(tensors, path);
  dispose(tensors);
  await expect(saving).rejects.toMatchObject({ code: 'CLOSED', tensor: 'a' });
  expect(readFileSync(path).equals(before)).toBe(true);
});
