import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ParallelLoader, readHeadersBatch, SafeTensorsMetadata } from 'fastsafetensors-node';
import { native } from '../src/native/addon.js';
import { testFolder, writeTensors } from './support/tensor-files.js';

const folder = testFolder();
const COUNT = 40;
let paths: string[];
beforeAll(async () => {
  const tensor = { dtype: 'U8', shape: [1], data: Uint8Array.of(1) } as const;
  paths = await Promise.all(
    Array.from({ length: COUNT }, (_, i) => writeTensors(join(folder, `${i}.safetensors`), { [`w${i}`]: tensor })),
  );
});

test('gives the header of each path, in their order', async () => {
  const headers = await readHeadersBatch(paths);
  expect([...headers.keys()]).toEqual(paths);
  for (const [i, path] of paths.entries()) {
    const header = headers.get(path)!;
    expect(header).toBeInstanceOf(SafeTensorsMetadata);
    expect([header.path, header.keys()]).toEqual([path, [`w${i}`]]);
    const { headerLength, sizeBytes, dataStart } = await SafeTensorsMetadata.fromFile(path);
    expect(header).toMatchObject({ headerLength, sizeBytes, dataStart });
  }
});

test('takes URLs, any iterable, a path twice, and no path', async () => {
  expect([...(await readHeadersBatch([pathToFileURL(paths[0]!), paths[0]!])).keys()]).toEqual([paths[0]]);
  expect((await readHeadersBatch(new Set(paths.slice(0, 3)))).size).toBe(3);
  expect(await readHeadersBatch([])).toEqual(new Map());
});

test.each([1, 3, 64])('reads %i at a time', async (threads) => {
  let most = 0;
  let now = 0;
  const read = native().readHeader;
  const counted = jest.spyOn(native(), 'readHeader').mockImplementation((...given) => {
    most = Math.max(most, ++now);
    return read(...given).finally(() => --now) as ReturnType<typeof read>;
  });
  await readHeadersBatch(paths, { threads });
  expect(counted).toHaveBeenCalledTimes(COUNT);
  expect(most).toBe(Math.min(threads, COUNT));
  counted.mockRestore();
});

test('what is wrong with one file is said of it, and no other is begun', async () => {
  const broken = join(folder, 'broken.safetensors');
  writeFileSync(broken, Buffer.from([8, 0, 0, 0, 0, 0, 0, 0, ...Buffer.from('{"a": 1}')]));
  const read = jest.spyOn(native(), 'readHeader');
  const refused = expect(readHeadersBatch([broken, ...paths], { threads: 1 })).rejects;
  await refused.toMatchObject({ code: 'TENSOR_INVALID_INFO', path: broken });
  expect(read).toHaveBeenCalledTimes(1);
  read.mockRestore();
  await expect(readHeadersBatch([join(folder, 'absent')])).rejects.toMatchObject({ code: 'IO_ERROR' });
});

describe('of many files', () => {
  const MANY = 300;
  let many: string[];
  beforeAll(async () => {
    const tensor = { dtype: 'U8', shape: [1], data: Uint8Array.of(1) } as const;
    many = await Promise.all(
      Array.from({ length: MANY }, (_, i) =>
        writeTensors(join(folder, `many-${i}.safetensors`), { [`m${i}`]: tensor }),
      ),
    );
  });

  test('several headers are one call', async () => {
    const [one, several] = [jest.spyOn(native(), 'readHeader'), jest.spyOn(native(), 'readHeaders')];
    const headers = await readHeadersBatch(many);
    expect([...headers.keys()]).toEqual(many);
    for (const [i, path] of many.entries()) expect(headers.get(path)!.keys()).toEqual([`m${i}`]);
    expect(one).not.toHaveBeenCalled();
    expect(several).toHaveBeenCalledTimes(Math.ceil(MANY / 5));
    expect(several.mock.calls.every(([paths]) => paths.length === 5)).toBe(true);
    one.mockRestore();
    several.mockRestore();
  });

  test('what is wrong with one is said of it, and no call follows', async () => {
    const broken = join(folder, 'broken-too.safetensors');
    writeFileSync(broken, Buffer.from([8, 0, 0, 0, 0, 0, 0, 0, ...Buffer.from('{"a": 1}')]));
    const read = jest.spyOn(native(), 'readHeaders');
    const refused = expect(readHeadersBatch([...many.slice(0, 7), broken, ...many.slice(7)], { threads: 1 })).rejects;
    await refused.toMatchObject({ code: 'TENSOR_INVALID_INFO', path: broken });
    expect(read).toHaveBeenCalledTimes(2);
    read.mockRestore();
  });

  test('a call that hangs names the file that it has come to', async () => {
    const read = jest.spyOn(native(), 'readHeaders').mockReturnValue(new Promise(() => {}));
    const done = jest.spyOn(native(), 'progressOf').mockReturnValue(3);
    const loader = new ParallelLoader({ files: many, stallTimeoutMs: 50 });
    await expect(loader.iterateWeights().next()).rejects.toMatchObject({ code: 'STALLED', path: many[3] });
    await loader.close();
    read.mockRestore();
    done.mockRestore();
  });
});

test('an abort rejects with its reason', async () => {
  const reason = new Error('enough');
  await expect(readHeadersBatch(paths, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  const controller = new AbortController();
  const reading = readHeadersBatch(paths, { signal: controller.signal, threads: 1 });
  controller.abort(reason);
  await expect(reading).rejects.toBe(reason);
});

test.each<[string, unknown, object]>([
  ['a path alone', 'm.safetensors', {}],
  ['nothing', undefined, {}],
  ['no paths', [3], {}],
  ['a record', { 0: ['m.safetensors'] }, {}],
  ['no threads', [], { threads: 0 }],
  ['what is no signal', [], { signal: {} }],
  ['the name of Python', [], { num_threads: 8 }],
])('%s is INVALID_ARGUMENT', async (_, given, options) => {
  await expect(readHeadersBatch(given as never, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});
