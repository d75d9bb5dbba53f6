import { execFileSync } from 'node:child_process';
import fs, {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { createServer } from 'node:net';
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
  const { fsync } = fs;
  const synced: { path: string; seen: string[] }[] = [];
  jest.spyOn(fs, 'fsync').mockImplementation((fd, done) => {
    synced.push({ path: readlinkSync(`/proc/self/fd/${fd}`), seen: readdirSync(out).sort() });
    fsync(fd, done);
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

test.each(names)("%s writes where handles have no sync(), as under Yarn's Plug'n'Play", async (name) => {
  const handle = await open(folder);
  const prototype = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  jest.spyOn(prototype, 'sync').mockImplementation(() => {
    throw new Error('Method not implemented.');
  });
  const { write, files } = WRITERS[name]!;
  await write();
  expect(readdirSync(out).sort()).toEqual([...files].sort());
});

test.each(names)('%s leaves no temporary file when the last file cannot be written', async (name) => {
  const { write, files } = WRITERS[name]!;
  const last = files.at(-1)!;
  mkdirSync(join(out, last)); // a folder cannot be renamed over
  await expect(write()).rejects.toMatchObject({ code: 'IO_ERROR', path: join(out, last) });
  expect(readdirSync(out).sort()).toEqual(files);
});

test.each(names)('%s keeps the mode and the owner of the files that it replaces', async (name) => {
  const { write, files } = WRITERS[name]!;
  await write();
  const root = process.geteuid!() === 0;
  for (const [i, file] of files.entries()) {
    chmodSync(join(out, file), [0o600, 0o640][i % 2]!);
    if (root) chownSync(join(out, file), 65534, 65534);
  }
  const before = files.map((file) => statSync(join(out, file)));
  await write();
  for (const [i, file] of files.entries()) {
    const { mode, uid, gid, ino } = statSync(join(out, file));
    expect({ file, mode, uid, gid }).toMatchObject({ mode: before[i]!.mode, uid: before[i]!.uid, gid: before[i]!.gid });
    expect(ino).not.toBe(before[i]!.ino);
  }
});

test.each(names)('%s writes what links lead to, and leaves them', async (name) => {
  const { write, files } = WRITERS[name]!;
  const elsewhere = join(folder, 'elsewhere');
  for (const existing of [false, true]) {
    for (const file of files) {
      mkdirSync(elsewhere, { recursive: true });
      rmSync(join(out, file), { force: true });
      symlinkSync(join('..', 'elsewhere', `real-${file}`), join(out, file));
      if (!existing) rmSync(join(elsewhere, `real-${file}`), { force: true });
    }
    await write();
    expect(readdirSync(elsewhere).sort()).toEqual(files.map((file) => `real-${file}`).sort());
    for (const file of files) expect(readlinkSync(join(out, file))).toBe(join('..', 'elsewhere', `real-${file}`));
  }
  rmSync(elsewhere, { recursive: true });
});

test.each(names)('%s refuses what is no regular file, itself or behind a link, and leaves it', async (name) => {
  const { write, files } = WRITERS[name]!;
  const last = join(out, files.at(-1)!);
  const server = createServer();
  const makers: Record<string, () => unknown> = {
    'a named pipe': () => execFileSync('mkfifo', [last]),
    'a socket': () => new Promise<void>((resolve) => void server.listen(last, resolve)),
    'a folder': () => mkdirSync(last),
    'a device': () => symlinkSync('/dev/null', last),
  };
  for (const [kind, make] of Object.entries(makers)) {
    rmSync(last, { recursive: true, force: true });
    await make();
    const before = lstatSync(last);
    const message = `cannot write ${last}: expected a regular file or none, found ${kind}; choose another path`;
    await expect(write()).rejects.toMatchObject({ code: 'IO_ERROR', path: last, message });
    expect(lstatSync(last)).toMatchObject({ ino: before.ino, mode: before.mode });
    expect(readdirSync(out).filter((file) => file.endsWith('.tmp'))).toEqual([]);
    server.close();
  }
});

test('`..` in a link counts from the folder that the link to its folder leads to', async () => {
  mkdirSync(join(folder, 'far/inner'), { recursive: true });
  symlinkSync(join(folder, 'far/inner'), join(out, 'folder'));
  symlinkSync('../target', join(folder, 'far/inner/link'));
  await writeAtomically(join(out, 'folder/link'), [Buffer.from('new')]);
  expect(readFileSync(join(folder, 'far/target'), 'utf8')).toBe('new');
  rmSync(join(folder, 'far'), { recursive: true });
});

test('links in a circle are IO_ERROR', async () => {
  symlinkSync('b', join(out, 'a'));
  symlinkSync('a', join(out, 'b'));
  await expect(writeAtomically(join(out, 'a'), [])).rejects.toMatchObject({ code: 'IO_ERROR' });
  expect(readdirSync(out)).toEqual(['a', 'b']);
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
