import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { type LoaderOptions, registerCopier, saveFile } from 'fastsafetensors-node';
import { fakeReader, mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { encodeFile, models, newFolder } from './support/model-files.js';
import { expectSame, LOADERS, readByHand, userCopier } from './support/read-back.js';

// Bytes of random files come back equal through every loader, whatever moves them.

registerCopier('user', userCopier);
registerCopier('mock', mockCopier());
registerCopier('reordered', fakeReader({ reorder: true, chunk: 512, inFlight: 5 }));
registerCopier('aligned 512', fakeReader({ alignment: 512, chunk: 1024, fillsHost: 0, reorder: true }));
registerCopier('aligned 4096', fakeReader({ alignment: 4096, chunk: 4096, fillsHost: 0 }));
registerCopier('aligned, into place', fakeReader({ alignment: 256, chunk: 512, inFlight: 2, reorder: true }));

const HOW: Record<string, LoaderOptions> = {
  'into place': {},
  'through slots': { staging: 'always', bounceBufferSize: 4096, maxThreads: 2 },
  'past the page cache': { odirect: true, bounceBufferSize: 4096 },
  'past the page cache, through slots': { odirect: true, staging: 'always' },
  'onto a device': { device: 'cuda:0' },
  'onto another device, small slots': { device: 'cuda:1', bounceBufferSize: 4096, maxThreads: 1 },
  'onto a device past the page cache': { device: 'cuda:0', odirect: true },
  'onto a device from the page cache': { device: 'cuda:0', staging: 'mapped', bounceBufferSize: 4096 },
  'out of order': { copier: 'reordered' },
  'out of order onto a device': { copier: 'reordered', device: 'cuda:1' },
  'in blocks of 512': { copier: 'aligned 512' },
  'in blocks of 512 onto a device': { copier: 'aligned 512', device: 'cuda' },
  'in blocks of 4096': { copier: 'aligned 4096' },
  'in blocks of 256, into place where they fit': { copier: 'aligned, into place' },
  'by a copier of the user': { copier: 'user' },
  'by a copier of the user onto a device': { copier: 'user', device: 'gpu:1' },
  'by the mock copier': { copier: 'mock' },
};

let folder: string;
beforeAll(() => useFakeDevices({ copyDelayUs: 50 }));
afterAll(() => useFakeDevices(null));
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true }); // typed arrays over host tensors were dropped
});

const RUNS = { numRuns: 6 };

async function write(files: { entries: Parameters<typeof encodeFile>[0]; layout: Parameters<typeof encodeFile>[1] }[]) {
  return Promise.all(
    files.map(async ({ entries, layout }, i) => {
      const path = join(folder, `${i}.safetensors`);
      await writeFile(path, encodeFile(entries, layout));
      return path;
    }),
  );
}

test.each(Object.entries(HOW))('every loader gives back every byte, %s', async (_, options) => {
  await fc.assert(
    fc.asyncProperty(models, async ({ files }) => {
      const paths = await write(files);
      const entries = files.flatMap((file) => file.entries);
      for (const load of Object.values(LOADERS)) expectSame(await load(paths, options), entries);
    }),
    RUNS,
  );
});

test('a copier driven by hand gives back every byte', async () => {
  await fc.assert(
    fc.asyncProperty(models, async ({ files }) => {
      const paths = await write(files);
      for (const [i, path] of paths.entries()) expectSame(await readByHand(path), files[i]!.entries);
    }),
    RUNS,
  );
});

test('what saveFile wrote is read back by every loader', async () => {
  await fc.assert(
    fc.asyncProperty(models, async ({ files }) => {
      const paths: string[] = [];
      for (const [i, { entries }] of files.entries()) {
        paths.push(join(folder, `saved-${i}.safetensors`));
        await saveFile(
          entries.map(({ bytes, ...entry }) => ({ ...entry, data: bytes })),
          paths[i]!,
        );
      }
      for (const load of Object.values(LOADERS))
        expectSame(
          await load(paths, {}),
          files.flatMap((file) => file.entries),
        );
    }),
    RUNS,
  );
});

test('the order is that of files and offsets, unless asked for as ready', async () => {
  await fc.assert(
    fc.asyncProperty(models, async ({ files }) => {
      const paths = await write(files);
      // Empty tensors share their offset with a neighbour, so that their order among each other is open.
      const order = files.flatMap(({ entries }) =>
        entries.filter(({ bytes }) => bytes.length > 0).map(({ name }) => name),
      );
      for (const name of [
        'ParallelLoader, in order',
        'ParallelLoader, queueSize -1',
        'SafeTensorsFileLoader',
        'fastsafeOpen',
      ]) {
        const read = await LOADERS[name]!(paths, { copier: 'reordered' });
        expect(read.filter(({ bytes }) => bytes.length > 0).map((tensor) => tensor.name)).toEqual(order);
      }
    }),
    RUNS,
  );
});
