import { truncateSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { FastSafetensorsError, type LoaderOptions, registerCopier } from 'fastsafetensors-node';
import { fakeReader, mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { encodeFile, entry, newFolder } from './support/model-files.js';
import { LOADERS, userCopier } from './support/read-back.js';

// A file that is cut anywhere is refused by every loader with a typed error: never data, never zeros.

registerCopier('user', userCopier);
registerCopier('mock', mockCopier());
registerCopier('blocks', fakeReader({ alignment: 512, chunk: 512, fillsHost: 0 }));

const HOW: Record<string, LoaderOptions> = {
  'into place': {},
  'through slots': { staging: 'always' },
  'onto a device': { device: 'cuda:0' },
  'past the page cache': { odirect: true },
  'in blocks': { copier: 'blocks' },
  'by a copier of the user': { copier: 'user' },
  'by the mock copier': { copier: 'mock' },
};
const CODES = [
  'HEADER_TOO_SMALL',
  'INVALID_HEADER_LENGTH',
  'METADATA_INCOMPLETE_BUFFER',
  'UNEXPECTED_EOF',
  'INVALID_OFFSET',
];

let folder: string;
beforeAll(() => useFakeDevices({ copyDelayUs: 0 }));
afterAll(() => useFakeDevices(null));
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

test.each(Object.entries(HOW))('cut at every byte, %s', async (_, options) => {
  const file = encodeFile([entry('a', 'F32', [3]), entry('b', 'U8', [5]), entry('nothing', 'U8', [0])]);
  const path = join(folder, 'cut.safetensors');
  for (let length = file.length - 1; length >= 0; --length) {
    await writeFile(path, file.subarray(0, length));
    const loaders = length % 16 === 0 || length >= file.length - 17 ? Object.values(LOADERS) : [LOADERS.fastsafeOpen!];
    for (const load of loaders) {
      const error = await load([path], options).then(
        (read) => `${read.length} tensors of ${length} bytes`,
        (thrown) => thrown,
      );
      expect(error).toBeInstanceOf(FastSafetensorsError);
      expect(CODES).toContain(error.code);
      expect(error.path).toBe(path);
      expect(error.message).toContain('cut.safetensors');
    }
  }
});

test.each(Object.entries(HOW))('cut at every byte of the data after its header was read, %s', async (_, options) => {
  const file = encodeFile([entry('a', 'F32', [3]), entry('b', 'U8', [5])]);
  const path = join(folder, 'cut.safetensors');
  for (let length = file.length - 1; length >= file.length - 17; --length) {
    for (const load of Object.values(LOADERS)) {
      await writeFile(path, file);
      let cut = false;
      const filter = (): boolean => {
        truncateSync(path, length); // between the header and the first read
        cut = true;
        return true;
      };
      const error = await load([path], { ...options, filter }).then(
        (read) => `${read.length} tensors`,
        (thrown) => thrown,
      );
      expect(cut).toBe(true);
      expect(error).toBeInstanceOf(FastSafetensorsError);
      expect(['FILE_CHANGED', 'UNEXPECTED_EOF']).toContain(error.code);
      expect(error.path).toBe(path);
    }
  }
});
