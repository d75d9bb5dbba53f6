import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  fastsafeOpen,
  loadConfig,
  ParallelLoader,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
} from 'fastsafetensors-node';
import { externalFiles } from '../adapters/ort/session-options.js';
import { readRegularFile, readRegularFileSync } from '../src/base/regular-file.js';
import { main } from '../src/cli/main.js';
import { readModel } from '../src/models/onnx/model-file.js';
import { readModelJson } from '../src/models/tfjs/model-json.js';
import { newFolder } from './support/model-files.js';

// What is no regular file is told and not waited for: a pipe without a writer, a device without an end.

let folder: string;
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(() => rmSync(folder, { recursive: true }));

const PLACES: Record<string, (path: string) => void> = {
  'a named pipe': (path) => execFileSync('mkfifo', [path]),
  'a device': (path) => symlinkSync('/dev/zero', path),
  'a folder': (path) => mkdirSync(path),
};

describe.each(Object.entries(PLACES))('%s', (what, make) => {
  test('as index of a folder, or a file of weights, is IO_ERROR for every loader', async () => {
    const index = join(folder, 'model.safetensors.index.json');
    const weights = join(folder, 'model.safetensors');
    make(index);
    make(weights);
    for (const [files, path] of [
      [folder, index],
      [weights, weights],
    ] as const) {
      if (files === weights && what === 'a folder') continue; // it is looked into
      const expected = { code: 'IO_ERROR', path };
      await expect(fastsafeOpen(files)).rejects.toMatchObject(expected);
      await expect(new ParallelLoader({ files }).iterateWeights().next()).rejects.toMatchObject(expected);
      await expect(new SafeTensorsFileLoader().addFilenames(files)).rejects.toMatchObject(expected);
      await expect(SafeTensorsMetadata.fromFile(path)).rejects.toMatchObject(expected);
    }
    await expect(fastsafeOpen(folder)).rejects.toThrow(what);
    if (what !== 'a folder') await expect(fastsafeOpen(index)).rejects.toThrow(what);
  });

  test('as a configuration, a model or its external data is IO_ERROR', async () => {
    const path = join(folder, 'model.json');
    make(path);
    const expected = expect.objectContaining({ code: 'IO_ERROR', path, message: expect.stringContaining(what) });
    expect(() => loadConfig({ path })).toThrow(expected);
    if (what !== 'a folder') await expect(readModelJson(path)).rejects.toEqual(expected); // it is looked into
    await expect(readModel(path)).rejects.toEqual(expected);
    await expect(externalFiles([path])).rejects.toEqual(expected);
  });

  test('is told by verify', async () => {
    const index = join(folder, 'model.safetensors.index.json');
    make(index);
    const before = process.exitCode;
    const write = jest.spyOn(process.stdout, 'write').mockReturnValue(true);
    try {
      await main(['node', 'fastsafetensors', 'verify', folder]);
      expect(process.exitCode).toBe(1);
      expect(write.mock.calls.join('')).toContain('IO_ERROR'); // as for loaders
    } finally {
      process.exitCode = before;
      write.mockRestore();
    }
  });
});

test('a regular file is read whole, up to a limit', async () => {
  const path = join(folder, 'file');
  for (const bytes of [Buffer.alloc(0), Buffer.from('abc')]) {
    writeFileSync(path, bytes);
    expect(await readRegularFile(path)).toEqual(bytes);
    expect(readRegularFileSync(path)).toEqual(bytes);
    expect(await readRegularFile(path, bytes.length)).toEqual(bytes);
  }
  truncateSync(path, 1e12); // nothing is allocated for it
  await expect(readRegularFile(path, 1e6)).rejects.toThrow('1000000000000');
  expect(() => readRegularFileSync(path, 1e6)).toThrow('1000000000000');
});

test('a configuration that is no path is INVALID_ARGUMENT, not a file that somebody has open', () => {
  for (const path of [0, 5, null, Buffer.from('x'), {}])
    expect(() => loadConfig({ path } as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
});
