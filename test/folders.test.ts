/** @jest-environment ./test/support/native-arrays-environment.js */
import { mkdir, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { FileOptions } from '../src/loaders/options.js';
import { ENTRIES, SIZE } from './support/folder-entries.js';
import { expectNothingHeld } from './support/metrics.js';
import { encodeFile, newFolder } from './support/model-files.js';
import { bytesOf } from './support/onnx-model.js';

// Folders as people have them, and what every entry makes of each: which files it takes, or why it refuses.

/** What a layout loads as: the constant that "w" is full of, and the other tensors. */
interface Loads {
  w: number;
  others?: string[];
  /** What the report says of files that were left out. */
  note?: RegExp;
}
interface Refused {
  code: string;
  message: RegExp;
}
interface Layout {
  /** Writes it; returns what the user passes, by default the folder. */
  make(folder: string): Promise<unknown>;
  options?: FileOptions;
  expected: Loads | Refused;
}

const full = (number: number) => new Float32Array(SIZE).fill(number);
const f32 = (name: string, number: number) => {
  return { name, dtype: 'F32' as const, shape: [SIZE], bytes: bytesOf(full(number)) };
};

/** A .safetensors file with "w" full of a number, and other tensors. */
async function weights(path: string, w: number | null, ...others: string[]): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const tensors = [...(w === null ? [] : [f32('w', w)]), ...others.map((name) => f32(name, 0))];
  await writeFile(path, encodeFile(tensors));
}
async function index(path: string, map: Record<string, string>): Promise<void> {
  await writeFile(path, JSON.stringify({ metadata: {}, weight_map: map }));
}
/** Two shards with "w" and "v". */
async function shards(folder: string, w = 1, stem = 'model'): Promise<Record<string, string>> {
  const [a, b] = [`${stem}-00001-of-00002.safetensors`, `${stem}-00002-of-00002.safetensors`];
  await weights(join(folder, a), w);
  await weights(join(folder, b), null, 'v');
  return { w: a, v: b };
}
/** The cache of the Hugging Face hub: moves files of a snapshot into blobs, and links to them. */
async function cached(folder: string, fill: (snapshot: string) => Promise<string[]>): Promise<string> {
  const repository = join(folder, 'models--org--name');
  const snapshot = join(repository, 'snapshots', '5f2e');
  await mkdir(snapshot, { recursive: true });
  await mkdir(join(repository, 'blobs'));
  await mkdir(join(repository, 'refs'));
  await writeFile(join(repository, 'refs', 'main'), '5f2e');
  for (const [i, name] of (await fill(snapshot)).entries()) {
    await rename(join(snapshot, name), join(repository, 'blobs', `sha-${i}`));
    await symlink(`../../blobs/sha-${i}`, join(snapshot, name));
  }
  return repository;
}
const single = async (snapshot: string) => {
  await weights(join(snapshot, 'model.safetensors'), 1);
  return ['model.safetensors'];
};
const sharded = async (snapshot: string) => {
  const map = await shards(snapshot);
  await index(join(snapshot, 'model.safetensors.index.json'), map);
  return ['model.safetensors.index.json', ...Object.values(map)];
};

const LAYOUTS: Record<string, Layout> = {
  'hub cache, one file': {
    make: (folder) => cached(folder, single),
    expected: { w: 1 },
  },
  'hub cache, one file, by its snapshot': {
    make: async (folder) => join(await cached(folder, single), 'snapshots', '5f2e'),
    expected: { w: 1 },
  },
  'hub cache, sharded': {
    make: (folder) => cached(folder, sharded),
    expected: { w: 1, others: ['v'] },
  },
  'hub cache, sharded, by its index': {
    make: async (folder) => join(await cached(folder, sharded), 'snapshots', '5f2e', 'model.safetensors.index.json'),
    expected: { w: 1, others: ['v'] },
  },
  'hub cache, sharded, without followLinks': {
    make: (folder) => cached(folder, sharded),
    options: { followLinks: false },
    expected: { code: 'UNSAFE_SHARD_PATH', message: /model-0000[12]-of-00002.*followLinks is false/ },
  },
  'hub cache, several snapshots: that of refs/main': {
    make: async (folder) => {
      const repository = await cached(folder, single);
      await weights(join(repository, 'snapshots', '0000', 'model.safetensors'), 2);
      return repository;
    },
    expected: { w: 1 },
  },
  'hub cache, one snapshot of another revision than main': {
    make: async (folder) => {
      const repository = await cached(folder, single);
      await rm(join(repository, 'refs', 'main'));
      return repository;
    },
    expected: { w: 1 },
  },
  'hub cache, several snapshots and no refs/main': {
    make: async (folder) => {
      const repository = await cached(folder, single);
      await weights(join(repository, 'snapshots', '0000', 'model.safetensors'), 2);
      await rm(join(repository, 'refs', 'main'));
      return repository;
    },
    expected: { code: 'INVALID_ARGUMENT', message: /several snapshots: 0000, 5f2e/ },
  },
  'hub cache whose snapshot was removed': {
    make: async (folder) => {
      const repository = await cached(folder, single);
      await rm(join(repository, 'snapshots', '5f2e'), { recursive: true });
      return repository;
    },
    expected: { code: 'MISSING_SHARD', message: /refs\/main names the snapshot "5f2e", which is not in/ },
  },
  'hub cache whose refs/main leads elsewhere': {
    make: async (folder) => {
      const repository = await cached(folder, single);
      await writeFile(join(repository, 'refs', 'main'), '../../..');
      return repository;
    },
    expected: { code: 'UNSAFE_SHARD_PATH', message: /refs\/main names the snapshot/ },
  },
  'hub cache, interrupted download of a shard': {
    make: async (folder) => {
      const repository = await cached(folder, sharded);
      await rename(join(repository, 'blobs', 'sha-2'), join(repository, 'blobs', 'sha-2.incomplete'));
      return repository;
    },
    expected: { code: 'MISSING_SHARD', message: /is a link to \.\.\/\.\.\/blobs\/sha-2, which is not there/ },
  },
  'hub cache, interrupted download of the only file': {
    make: async (folder) => {
      const repository = await cached(folder, single);
      await rm(join(repository, 'blobs', 'sha-0'));
      return repository;
    },
    expected: { code: 'MISSING_SHARD', message: /is a link to \.\.\/\.\.\/blobs\/sha-0, which is not there/ },
  },
  'interrupted download, with an index': {
    make: async (folder) => {
      const map = await shards(folder);
      await index(join(folder, 'model.safetensors.index.json'), map);
      await rm(join(folder, map.v!));
    },
    expected: { code: 'MISSING_SHARD', message: /00002-of-00002\.safetensors is not there/ },
  },
  'interrupted download, without an index': {
    make: async (folder) => rm(join(folder, (await shards(folder)).v!)),
    expected: { code: 'MISSING_SHARD', message: /1 of the 2 files .* not model-00002-of-00002\.safetensors/ },
  },
  'interrupted download of the first shard': {
    make: async (folder) => rm(join(folder, (await shards(folder)).w!)),
    expected: { code: 'MISSING_SHARD', message: /1 of the 2 files .* not model-00001-of-00002\.safetensors/ },
  },
  'interrupted download of aria2, which keeps room under the right name': {
    make: async (folder) => {
      const { v } = await shards(folder);
      await writeFile(join(folder, `${v}.aria2`), '');
    },
    expected: { code: 'MISSING_SHARD', message: /00002-of-00002\.safetensors is not whole: .*\.aria2/ },
  },
  'interrupted download of a single file': {
    make: async (folder) => writeFile(join(folder, 'model.safetensors.incomplete'), 'x'),
    expected: { code: 'NO_FILES', message: /unfinished download it has model\.safetensors\.incomplete/ },
  },
  'a whole set without an index, numbered with other widths, as DeepSeek does': {
    make: async (folder) => {
      await weights(join(folder, 'model-00001-of-000002.safetensors'), 1);
      await weights(join(folder, 'model-00002-of-000002.safetensors'), null, 'v');
    },
    expected: { w: 1, others: ['v'] },
  },
  'a whole set that counts from 0': {
    make: async (folder) => {
      await weights(join(folder, 'model-00000-of-00002.safetensors'), 1);
      await weights(join(folder, 'model-00001-of-00002.safetensors'), null, 'v');
    },
    expected: { w: 1, others: ['v'] },
  },
  'a whole set, and files beside it': {
    make: async (folder) => {
      await shards(folder);
      await weights(join(folder, 'extra.safetensors'), 9, 'extra');
    },
    expected: { w: 1, others: ['v'], note: /left out beside model-00001-of-00002.*: extra\.safetensors/ },
  },
  'two sets': {
    make: async (folder) => {
      await shards(folder);
      await shards(folder, 2, 'other');
    },
    expected: { code: 'INVALID_ARGUMENT', message: /several models: model-00001.* and 1 more, other-00001.* pass the/ },
  },
  'a set that was cut anew, beside the old one': {
    make: async (folder) => {
      await shards(folder);
      await weights(join(folder, 'model-00001-of-00001.safetensors'), 2);
    },
    expected: { code: 'INVALID_ARGUMENT', message: /several models: model-00001-of-00001.*, model-00001-of-00002/ },
  },
  'an index of any stem, and strays beside it': {
    make: async (folder) => {
      const map = await shards(folder, 1, 'diffusion_pytorch_model');
      await index(join(folder, 'diffusion_pytorch_model.safetensors.index.json'), map);
      await weights(join(folder, 'stray.safetensors'), 9, 'stray');
      await writeFile(join(folder, 'config.json'), '{}');
    },
    expected: { w: 1, others: ['v'], note: /left out beside diffusion_.*index\.json: stray\.safetensors/ },
  },
  'diffusers, the index of a variant alone': {
    make: async (folder) => {
      const map = await shards(folder, 1, 'model.fp16');
      await index(join(folder, 'model.safetensors.index.fp16.json'), map);
    },
    expected: { w: 1, others: ['v'] },
  },
  'diffusers, indices of two variants': {
    make: (folder) => twoVariants(folder),
    expected: { code: 'INVALID_ARGUMENT', message: /index\.fp16\.json, .*index\.json; choose one by variant: 'fp16'/ },
  },
  "diffusers, indices of two variants, variant: 'fp16'": {
    make: (folder) => twoVariants(folder),
    options: { variant: 'fp16' },
    expected: { w: 16, others: ['v'], note: /left out beside .*index\.fp16\.json: model-00001/ },
  },
  'diffusers, files of two variants': {
    make: (folder) => twoFiles(folder),
    expected: {
      code: 'INVALID_ARGUMENT',
      message:
        /several models: diffusion_pytorch_model\.fp16\.safetensors, diffusion_pytorch_model\.safetensors; choose/,
    },
  },
  "diffusers, files of two variants, variant: 'fp16'": {
    make: (folder) => twoFiles(folder),
    options: { variant: 'fp16' },
    expected: { w: 16, note: /left out beside .*\.fp16\.safetensors: diffusion_pytorch_model\.safetensors/ },
  },
  "diffusers, files of two variants, variant: ''": {
    make: (folder) => twoFiles(folder),
    options: { variant: '' },
    expected: { w: 32, note: /left out beside .*model\.safetensors: .*\.fp16\.safetensors/ },
  },
  'diffusers, a variant that is not there': {
    make: (folder) => twoFiles(folder),
    options: { variant: 'bf16' },
    expected: { code: 'NO_FILES', message: /no weights of variant 'bf16'; it has 'fp16', ''/ },
  },
  'diffusers, sets of two variants without an index': {
    make: async (folder) => {
      await shards(folder, 32);
      await shards(folder, 16, 'model.fp16');
    },
    options: { variant: 'fp16' },
    expected: { w: 16, others: ['v'], note: /left out/ },
  },
  'diffusers, a set of a variant as old versions called it': {
    make: async (folder) => {
      await weights(join(folder, 'model-00001-of-00002.fp16.safetensors'), 16);
      await weights(join(folder, 'model-00002-of-00002.fp16.safetensors'), null, 'v');
      await shards(folder, 32);
    },
    options: { variant: 'fp16' },
    expected: { w: 16, others: ['v'], note: /left out/ },
  },
  'a variant whose name nobody could guess': {
    make: async (folder) => {
      await weights(join(folder, 'model-3.2-1b.safetensors'), 32);
      await weights(join(folder, 'model-3.2-1b.8bit.safetensors'), 8);
    },
    options: { variant: '8bit' },
    expected: { w: 8, note: /left out/ },
  },
  'an index with a suffix of its own, and one without, of two variants': {
    make: async (folder) => {
      await index(join(folder, 'model.safetensors.index.json'), await shards(folder, 32));
      await index(join(folder, 'model.safetensors.index-fp8_e4m3.json'), await shards(folder, 8, 'model.fp8_e4m3'));
    },
    options: { variant: 'fp8_e4m3' },
    expected: { w: 8, others: ['v'], note: /left out/ },
  },
  'diffusers, the folder of a whole pipeline': {
    make: async (folder) => {
      await weights(join(folder, 'unet', 'diffusion_pytorch_model.safetensors'), 1);
      await weights(join(folder, 'vae', 'diffusion_pytorch_model.safetensors'), 1);
      await writeFile(join(folder, 'model_index.json'), '{}');
    },
    expected: { code: 'NO_FILES', message: /these folders of it do: unet, vae/ },
  },
  'names with dots that are no variants': {
    make: async (folder) => {
      await weights(join(folder, 'net.v1.5.safetensors'), 1);
      await weights(join(folder, 'net.v1.6.safetensors'), null, 'v');
      await weights(join(folder, 'tower.text.safetensors'), null, 'text');
      await weights(join(folder, 'tower.vision.safetensors'), null, 'vision');
    },
    expected: { w: 1, others: ['v', 'text', 'vision'] },
  },
  'consolidated beside a whole set': {
    make: async (folder) => {
      await shards(folder);
      await weights(join(folder, 'consolidated.safetensors'), 9, 'tok_embeddings');
    },
    expected: { w: 1, others: ['v'], note: /left out beside model-00001.*: consolidated\.safetensors/ },
  },
  'consolidated beside half a set': {
    make: async (folder) => {
      await rm(join(folder, (await shards(folder)).v!));
      await weights(join(folder, 'consolidated.safetensors'), 9);
    },
    expected: { code: 'MISSING_SHARD', message: /not model-00002/ },
  },
  'consolidated as a set with its own index, beside another index': {
    make: async (folder) => {
      await index(join(folder, 'model.safetensors.index.json'), await shards(folder));
      await index(join(folder, 'consolidated.safetensors.index.json'), await shards(folder, 9, 'consolidated'));
    },
    expected: { w: 1, others: ['v'], note: /left out beside model\.safetensors\.index\.json: consolidated-00001/ },
  },
  'consolidated beside model.safetensors': {
    make: async (folder) => {
      await weights(join(folder, 'model.safetensors'), 1);
      await weights(join(folder, 'consolidated.safetensors'), null, 'tok_embeddings');
    },
    expected: { w: 1, note: /left out beside model\.safetensors: consolidated\.safetensors/ },
  },
  'consolidated alone': {
    make: (folder) => weights(join(folder, 'consolidated.safetensors'), 1),
    expected: { w: 1 },
  },
  'what macOS leaves behind': {
    make: async (folder) => {
      const map = await shards(folder);
      await index(join(folder, 'model.safetensors.index.json'), map);
      for (const name of ['model.safetensors.index.json', 'model.safetensors', ...Object.values(map)])
        await writeFile(join(folder, `._${name}`), Buffer.from('0005160700020000', 'hex'));
      await writeFile(join(folder, '.DS_Store'), '');
    },
    expected: { w: 1, others: ['v'] },
  },
  'what macOS leaves behind, without an index': {
    make: async (folder) => {
      await weights(join(folder, 'model.safetensors'), 1);
      await writeFile(join(folder, '._model.safetensors'), Buffer.from('0005160700020000', 'hex'));
    },
    expected: { w: 1 },
  },
  'a shard that is a link to another disk': {
    make: async (folder) => {
      const map = await shards(folder);
      await index(join(folder, 'model.safetensors.index.json'), map);
      await moveAway(folder, map.v!);
    },
    expected: { w: 1, others: ['v'] },
  },
  'a shard that is a link to another disk, without followLinks': {
    make: async (folder) => {
      const map = await shards(folder);
      await index(join(folder, 'model.safetensors.index.json'), map);
      await moveAway(folder, map.v!);
    },
    options: { followLinks: false },
    expected: { code: 'UNSAFE_SHARD_PATH', message: /00002-of-00002.*is a link to/ },
  },
  'a link in the middle of a path of the index, without followLinks': {
    make: async (folder) => {
      await weights(join(folder, 'model.safetensors'), 1);
      await index(join(folder, 'model.safetensors.index.json'), { w: 'linked/away.safetensors' });
      await weights(join(elsewhere, 'away.safetensors'), 1);
      await symlink(elsewhere, join(folder, 'linked'));
    },
    options: { followLinks: false },
    expected: { code: 'UNSAFE_SHARD_PATH', message: /linked\/away\.safetensors.*is a link to/ },
  },
  'an index that leads out of the folder by name': {
    make: (folder) => index(join(folder, 'model.safetensors.index.json'), { w: '../away.safetensors' }),
    expected: { code: 'UNSAFE_SHARD_PATH', message: /it leaves the folder/ },
  },
  'a link to a device': {
    make: (folder) => symlink('/dev/zero', join(folder, 'model.safetensors')),
    expected: { code: 'IO_ERROR', message: /not a regular file/ },
  },
  'an index, and a shard that is a link to a device': {
    make: async (folder) => {
      await index(join(folder, 'model.safetensors.index.json'), { w: 'w.safetensors' });
      await symlink('/dev/zero', join(folder, 'w.safetensors'));
    },
    expected: { code: 'IO_ERROR', message: /not a regular file/ },
  },
  'weights of another format': {
    make: (folder) => writeFile(join(folder, 'pytorch_model.bin'), ''),
    expected: { code: 'NO_FILES', message: /other formats are there: pytorch_model\.bin/ },
  },
};

async function twoVariants(folder: string): Promise<void> {
  await index(join(folder, 'model.safetensors.index.json'), await shards(folder, 32));
  await index(join(folder, 'model.safetensors.index.fp16.json'), await shards(folder, 16, 'model.fp16'));
}
async function twoFiles(folder: string): Promise<void> {
  await weights(join(folder, 'diffusion_pytorch_model.safetensors'), 32);
  await weights(join(folder, 'diffusion_pytorch_model.fp16.safetensors'), 16);
}
async function moveAway(folder: string, name: string): Promise<void> {
  await rename(join(folder, name), join(elsewhere, name));
  await symlink(join(elsewhere, name), join(folder, name));
}

let folder: string;
let elsewhere: string;
beforeEach(async () => {
  folder = await newFolder();
  elsewhere = await newFolder();
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await rm(elsewhere, { recursive: true });
  await expectNothingHeld();
});

describe.each(Object.entries(LAYOUTS))('%s', (_, { make, options = {}, expected }) => {
  test.each(Object.entries(ENTRIES))('%s', async (entry, read) => {
    const made = await make(folder);
    const files = typeof made === 'string' ? made : folder;
    const seen = await read(files, options).catch((error) => {
      if (error?.code === undefined) throw error;
      return error;
    });
    if ('code' in expected) {
      expect(seen).toMatchObject({ code: expected.code, message: expect.stringMatching(expected.message) });
      return;
    }
    if (seen.code) throw seen;
    const names = ['w', ...(expected.others ?? [])];
    if (entry === 'load') expect(seen.names.length).toBe(names.length);
    else if (seen.names) expect([...seen.names].sort()).toEqual(names.sort());
    if (seen.w !== undefined) expect(seen.w).toBe(expected.w);
    const notes = expected.note ? [expect.stringMatching(expected.note)] : [];
    if (seen.notes) expect(seen.notes).toEqual(notes);
  });
});
