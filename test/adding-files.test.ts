import { rm } from 'node:fs/promises';
import { SafeTensorsFileLoader } from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// addFilenames() adds to the files of earlier calls, as fastsafetensors' add_filenames does.

const FILES = ['a', 'b', 'c'].map((name) => [entry(`${name}.w`, 'F32', [8, 3]), entry(`${name}.b`, 'U8', [5])]);
const NAMES = FILES.flat().map(({ name }) => name);

let folder: string;
let paths: string[];
let loader: SafeTensorsFileLoader;
beforeEach(async () => {
  folder = await newFolder();
  paths = [];
  for (const [i, entries] of FILES.entries()) paths.push(await writeModel(folder, entries, `${i}.safetensors`));
  loader = new SafeTensorsFileLoader();
});
afterEach(async () => {
  await loader.close();
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

async function expectTensors(from: SafeTensorsFileLoader, entries: typeof FILES): Promise<void> {
  const buffer = await from.copyFilesToDevice();
  expect(buffer.keys()).toEqual(entries.flat().map(({ name }) => name));
  for (const { name, shape, bytes } of entries.flat()) {
    expect(from.getShape(name)).toEqual(shape);
    const tensor = await buffer.getTensor(name);
    expect(Buffer.from(await tensor.toHost())).toEqual(Buffer.from(bytes));
    tensor.dispose();
  }
  await buffer.close();
}

test('files of several calls are loaded together, in the order of the calls', async () => {
  for (const path of paths) await loader.addFilenames(path);
  expect(loader.keys()).toEqual(NAMES);
  expect(loader.estimate().tensors).toBe(6);
  await expectTensors(loader, FILES);
  expect(loader.report).toMatchObject({ files: 3, tensors: 6 });
});

test('calls at the same time add in their order, too', async () => {
  await Promise.all([loader.addFilenames(paths[2]!), loader.addFilenames({ 0: paths.slice(0, 2) })]);
  expect(loader.keys()).toEqual([...NAMES.slice(4), ...NAMES.slice(0, 4)]);
  await expectTensors(loader, [FILES[2]!, FILES[0]!, FILES[1]!]);
});

test('files may be added between loads; a buffer has those of its load', async () => {
  await loader.addFilenames(paths[0]!);
  const before = await loader.copyFilesToDevice();
  await loader.addFilenames(paths[1]!);
  await loader.addFilenames(paths[2]!);
  expect(before.keys()).toEqual(NAMES.slice(0, 2));
  expect(before.getFilename('b.w')).toBe('');
  await expect(before.getTensor('b.w')).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
  await before.close();
  await expectTensors(loader, FILES);
});

test('a name that was added before is refused, and nothing of that call is added', async () => {
  await loader.addFilenames(paths[0]!);
  await loader.addFilenames(paths[1]!);
  const same = await writeModel(folder, [entry('new', 'U8', [1]), entry('b.w', 'F32', [8, 3])], 'same.safetensors');
  for (const again of [paths[0]!, same]) {
    await expect(loader.addFilenames(again)).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR', path: again });
  }
  await expect(loader.addFilenames(`${folder}/none.safetensors`)).rejects.toMatchObject({ code: 'IO_ERROR' });
  expect(loader.keys()).toEqual(NAMES.slice(0, 4));
  await loader.addFilenames(paths[2]!);
  await expectTensors(loader, FILES);
});

test('the filter is asked once for each tensor', async () => {
  const asked: string[] = [];
  await using filtered = new SafeTensorsFileLoader({
    filter: (name) => {
      asked.push(name);
      return name.endsWith('.w');
    },
  });
  for (const path of paths) await filtered.addFilenames(path);
  expect(asked).toEqual(NAMES);
  expect(filtered.keys()).toEqual(['a.w', 'b.w', 'c.w']);
});

test('a failed call leaves those at the same time alone', async () => {
  const results = await Promise.allSettled([
    loader.addFilenames(paths[0]!),
    loader.addFilenames(`${folder}/none.safetensors`),
    loader.addFilenames(paths[1]!),
  ]);
  expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  expect(loader.keys()).toEqual(NAMES.slice(0, 4));
});

test('reset() forgets all that was added, also while more is being added', async () => {
  await loader.addFilenames(paths[0]!);
  const adding = loader.addFilenames(paths[1]!);
  loader.reset();
  expect(() => loader.keys()).toThrow(expect.objectContaining({ code: 'NO_FILES' }));
  await adding;
  expect(loader.keys()).toEqual(NAMES.slice(2, 4));
  loader.reset();
  for (const path of paths) await loader.addFilenames(path);
  await expectTensors(loader, FILES);
});

test('notes of all files are in the report', async () => {
  await writeModel(folder, [entry('d', 'U8', [1])], 'sub.fp16.safetensors');
  await loader.addFilenames(paths[0]!);
  expect(loader.report.notes).toEqual([]);
  loader.reset();
  const shard = await writeModel(folder, [entry('e', 'U8', [1])], 'm-00001-of-00001.safetensors');
  await loader.addFilenames(folder); // the set, and what lies beside it is left out
  await loader.addFilenames(paths[0]!);
  expect(loader.keys()).toEqual(['e', 'a.w', 'a.b']);
  expect(loader.report.notes).toEqual([expect.stringContaining('left out beside')]);
  expect(shard).toContain('00001');
});
