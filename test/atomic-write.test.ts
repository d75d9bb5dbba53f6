import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { writeAtomically } from '../src/base/atomic-write.js';
import { splitOnnx } from '../src/models/onnx/split.js';
import { splitTfjs } from '../src/models/tfjs/split.js';
import { saveFile } from '../src/safetensors/save-file.js';
import { addModel, floats, rawTensor } from './support/onnx-model.js';
import { testFolder } from './support/tensor-files.js';
import { writeGraphModel } from './support/tf-models.js';

// What every writer of files promises: old or new, never half, and synced before anybody is told.

const folder = testFolder();
let out: string;
beforeEach(() => {
  out = join(folder, 'out');
  mkdirSync(out);
});
afterEach(() => {
  jest.restoreAllMocks();
  rmSync(out, { recursive: true });
});

function onnxModel(): string {
  const path = join(folder, 'm.onnx');
  writeFileSync(path, addModel(rawTensor('w', [512], floats(512))));
  return path;
}

/** Each writer, and the files that it makes in `out`, the last one last. */
const WRITERS: Record<string, { write: () => Promise<unknown>; files: string[] }> = {
  saveFile: {
    write: () =>
      saveFile([{ name: 'w', dtype: 'U8', shape: [2], data: Uint8Array.of(1, 2) }], join(out, 'w.safetensors')),
    files: ['w.safetensors'],
  },
  splitOnnx: { write: () => splitOnnx(onnxModel(), { out }), files: ['m.safetensors', 'm.split.onnx'] },
  splitTfjs: {
    write: () => splitTfjs(writeGraphModel(join(folder, 'tfjs')), { out }),
    files: ['model.safetensors', 'model.split.json'],
  },
};
const names = Object.keys(WRITERS);

test.each(names)('%s syncs files before they get their names, and the folder after', async (name) => {
  const handle = await open(folder);
  const prototype = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  const { sync } = prototype;
  const synced: { path: string; seen: string[] }[] = [];
  jest.spyOn(prototype, 'sync').mockImplementation(function (this: FileHandle) {
    synced.push({ path: readlinkSync(`/proc/self/fd/${this.fd}`), seen: readdirSync(out).sort() });
    return sync.call(this);
  });
  const { write, files } = WRITERS[name]!;
  await write();
  expect(synced.at(-1)).toEqual({ path: out, seen: files });
  for (const file of files) {
    const named = synced.findIndex(({ seen }) => seen.includes(file));
    expect([file, synced[named]?.path]).toEqual([file, out]); // seen first when the folder is synced
    expect(basename(synced[named - 1]!.path)).toMatch(/^\..*\.tmp$|^out$/);
  }
});

test.each(names)('%s leaves no temporary file when the last file cannot be written', async (name) => {
  const { write, files } = WRITERS[name]!;
  const last = files.at(-1)!;
  mkdirSync(join(out, last)); // a folder cannot be renamed over
  await expect(write()).rejects.toMatchObject({ code: 'IO_ERROR', path: join(out, last) });
  expect(readdirSync(out).sort()).toEqual(files);
});

test('what fails halfway leaves the old file', async () => {
  const path = join(out, 'm');
  writeFileSync(path, 'old');
  const halfway = function* () {
    yield new Uint8Array(3 << 20);
    throw new Error('halfway');
  };
  await expect(writeAtomically(path, halfway())).rejects.toMatchObject({
    code: 'IO_ERROR',
    path,
    message: `cannot write ${path}: halfway`,
  });
  expect([readdirSync(out), readFileSync(path, 'utf8')]).toEqual([['m'], 'old']);
});

test('pieces around the size of one write keep their order', async () => {
  const pieces = [1, 0, (1 << 20) - 1, 1 << 20, 3, (1 << 20) + 1, 2].map((size, i) => new Uint8Array(size).fill(i + 1));
  await writeAtomically(join(out, 'm'), pieces);
  expect(readFileSync(join(out, 'm')).equals(Buffer.concat(pieces))).toBe(true);
});
