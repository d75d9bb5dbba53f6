import { rm, utimes, writeFile } from 'node:fs/promises';
import { SafeTensorsMetadata } from 'fastsafetensors-node';
import { checkUnchanged } from '../src/safetensors/file-identity';
import { newFolder, someEntries, writeModel } from './support/model-files.js';

// Whether a path still means the file whose header was read, for data that the core does not read.

let folder: string;
let path: string;
let metadata: SafeTensorsMetadata;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, someEntries());
  metadata = await SafeTensorsMetadata.fromFile(path);
});
afterEach(() => rm(folder, { recursive: true }));

test('a file that nobody touched is unchanged, and a header from a buffer has none', async () => {
  await checkUnchanged(path, metadata.identity);
  await checkUnchanged('', null);
});

test.each(['dev', 'ino', 'size', 'mtimeNs'] as const)('another %s is FILE_CHANGED', async (part) => {
  const other = { ...metadata.identity!, [part]: metadata.identity![part] + 1n };
  await expect(checkUnchanged(path, other)).rejects.toMatchObject({ code: 'FILE_CHANGED', path });
});

test('the message says what moved', async () => {
  await utimes(path, new Date(), new Date(Date.now() + 5000));
  await expect(checkUnchanged(path, metadata.identity)).rejects.toThrow('its modification time moved');
  await writeFile(path, 'x');
  await expect(checkUnchanged(path, metadata.identity)).rejects.toThrow(`from ${metadata.sizeBytes} to 1 bytes`);
});

test('a file that is gone is IO_ERROR', async () => {
  await rm(path);
  await expect(checkUnchanged(path, metadata.identity)).rejects.toMatchObject({ code: 'IO_ERROR', path });
});
