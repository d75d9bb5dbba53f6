import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs, {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { type LoadReport, ParallelLoader, type SaveTensor, saveFile, saveSharded } from 'fastsafetensors-node';
import { removedAtExit, removeTemporaries, temporaryIn } from '../src/base/temporary.js';
import { expectClean, runChild } from './support/child.js';
import { runCli } from './support/cli.js';
import { failLinks, failRenames } from './support/failing-files.js';
import { expectNothingHeld } from './support/metrics.js';
import { newFolder } from './support/model-files.js';
import { inPrivateMounts, testUnless, whyNoMounts } from './support/private-mounts.js';

// What stands where a file or a set is saved: its digests, links, and what a process left that ended amid a save.

let folder: string;
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(async () => {
  jest.restoreAllMocks();
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

const tensor = (name: string, fill: number): SaveTensor => ({ name, shape: [8], data: new Uint8Array(8).fill(fill) });
const model = (fill: number): SaveTensor[] => ['a', 'b', 'c'].map((name) => tensor(name, fill));

/** Loads with every tensor verified. */
async function verified(files: string): Promise<{ report: LoadReport; fills: number[] }> {
  const loader = new ParallelLoader({ files, checksum: 'require' });
  const fills: number[] = [];
  for await (const [, each] of loader) {
    fills.push((each.data as Uint8Array)[0]!);
    each.dispose();
  }
  return { report: loader.report, fills: [...new Set(fills)] };
}

describe('digests', () => {
  test('of files that are saved at a time into one folder are all there, in each of them', async () => {
    const paths = Array.from({ length: 12 }, (_, i) => join(folder, `m${i}.safetensors`));
    await Promise.all(paths.map((path, i) => saveFile([tensor('w', i)], path, { checksum: true })));
    for (const [i, path] of paths.entries()) expect((await verified(path)).fills).toEqual([i]);
    // In place of each other, with and without.
    const path = paths[0]!;
    await Promise.all([1, 2, 3].map((i) => saveFile([tensor('w', i)], path, { checksum: i !== 2 })));
    expect(readdirSync(folder).length).toBe(12);
  });

  test.each([{ checksum: true }, { checksum: false }])(
    'of a file stay where the new one fails: %j',
    async (options) => {
      const path = join(folder, 'm.safetensors');
      await saveFile(model(1), path);
      await runCli('checksum', path);
      failRenames((_, to) => to === path);
      await expect(saveFile(model(2), path, options)).rejects.toMatchObject({ code: 'IO_ERROR' });
      jest.restoreAllMocks();
      expect((await verified(path)).fills).toEqual([1]);
      expect(readdirSync(folder).sort()).toEqual(['m.safetensors', 'm.safetensors.sums.json']);
      await saveFile(model(2), path, options);
      expect(readdirSync(folder)).toEqual(['m.safetensors']);
    },
  );

  test('of files are in the header where their names are too long for another file', async () => {
    const path = join(folder, `${'m'.repeat(255 - '.safetensors'.length)}.safetensors`);
    for (const fill of [1, 2]) {
      await saveFile(model(fill), path);
      const loader = new ParallelLoader({ files: path, followLinks: fill === 1 });
      const read: number[] = [];
      for await (const [, each] of loader) {
        read.push((each.data as Uint8Array)[0]!);
        each.dispose();
      }
      expect(read).toEqual([fill, fill, fill]);
    }
    const { exitCode, stderr } = await runCli('checksum', path);
    expect([exitCode, stderr]).toEqual([1, expect.stringMatching(/no names that long; give .* a shorter one/)]);
    await saveFile(model(3), path, { checksum: true });
    expect((await verified(path)).fills).toEqual([3]);
    expect(readdirSync(folder).length).toBe(1);
  });

  test.each([
    { old: 8, next: 8, links: true },
    { old: 8, next: 8, links: false },
    { old: 8, next: 100, links: true },
    { old: 100, next: 8, links: true },
    { old: 100, next: 8, links: false },
    { old: 100, next: 100, links: true },
  ])('of a set stay at each step until it is replaced: %j', async ({ old, next, links }) => {
    for (let failing = 0; ; ++failing) {
      rmSync(folder, { recursive: true });
      mkdirSync(folder);
      await saveSharded(model(1), folder, { maxShardBytes: old });
      await runCli('checksum', folder);
      failRenames((nth) => nth === failing);
      if (!links) failLinks();
      const error = await saveSharded(model(2), folder, { maxShardBytes: next }).catch((reason) => reason);
      jest.restoreAllMocks();
      if (error === undefined) break;
      expect(error).toMatchObject({ code: 'IO_ERROR' });
      expect((await verified(folder)).fills).toEqual([1]);
    }
    const left = readdirSync(folder).filter((name) => name.startsWith('.') || name.endsWith('.sums.json'));
    expect(left).toEqual([]);
  });

  /** Takes the sums file away when the header has been read: it was there, and is not when it is to be read. */
  async function loadVanishing(checksum: 'auto' | 'require'): Promise<LoadReport> {
    const path = join(folder, 'm.safetensors');
    await saveFile(model(1), path);
    await runCli('checksum', path);
    const loader = new ParallelLoader({
      files: path,
      checksum,
      filter: () => {
        rmSync(`${path}.sums.json`, { force: true });
        return true;
      },
    });
    for await (const [, each] of loader) each.dispose();
    return loader.report;
  }

  test("that vanish after the header was read are an error with 'require', and a note with 'auto'", async () => {
    await expect(loadVanishing('require')).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: 'a' });
    const { notes, verifiedTensors } = await loadVanishing('auto');
    expect([verifiedTensors, notes]).toEqual([0, [expect.stringMatching(/^not verified: .*sums\.json was there/)]]);
  });
});

describe('links in the folder of a set', () => {
  const SHARDS = [1, 2, 3].map((i) => `model-0000${i}-of-00003.safetensors`);

  test.each([8, 100])(
    'are replaced; nothing outside of the folder changes: files of %i bytes',
    async (maxShardBytes) => {
      const outside = join(folder, 'outside');
      const out = join(folder, 'out');
      await saveSharded(model(1), outside, { maxShardBytes: 8 });
      await runCli('checksum', outside);
      mkdirSync(out);
      const names = readdirSync(outside);
      for (const name of names) {
        chmodSync(join(outside, name), 0o640);
        symlinkSync(join(outside, name), join(out, name));
      }
      // One leads nowhere, and a file there would be one outside.
      symlinkSync(join(outside, 'nowhere'), join(out, 'model-00009-of-00009.safetensors'));
      const state = () =>
        readdirSync(outside).map((name) => {
          const { ino, mode, mtimeMs, nlink } = statSync(join(outside, name));
          return [name, ino, mode, mtimeMs, nlink, readFileSync(join(outside, name), 'latin1')];
        });
      const before = state();
      await saveSharded(model(2), out, { maxShardBytes });
      expect(state()).toEqual(before);
      const files = maxShardBytes === 8 ? [...SHARDS, 'model.safetensors.index.json'] : ['model.safetensors'];
      const entries = readdirSync(out, { withFileTypes: true });
      expect(entries.map(({ name }) => name).sort()).toEqual(files);
      expect(entries.every((entry) => entry.isFile())).toBe(true);
      expect((await verified(outside)).fills).toEqual([1]);
    },
  );

  test('one that has the name of the single file, and leads nowhere, makes no file there', async () => {
    symlinkSync('../nowhere', join(folder, 'model.safetensors'));
    await saveSharded(model(2), folder);
    expect([readdirSync(folder), existsSync(join(folder, '..', 'nowhere'))]).toEqual([['model.safetensors'], false]);
  });
});

testUnless(whyNoMounts())('what a link leads to is written where the folder of the link is read-only', async () => {
  const links = join(folder, 'links');
  mkdirSync(links);
  symlinkSync('../m.safetensors', join(links, 'link'));
  await expectClean('save-read-only.child.cjs', [links], { shell: inPrivateMounts('64m') });
  expect((await verified(join(folder, 'm.safetensors'))).fills).toEqual([1]);
});

describe('a process that ends amid a save', () => {
  test.each(['file', 'checksum', 'sharded'])('that it asks for leaves nothing: %s', async (what) => {
    const { code, stdout } = await runChild('save-exit.child.cjs', [folder, what]);
    expect([code, stdout, readdirSync(folder)]).toEqual([3, 'begun\n', []]);
  });

  /** A model that takes seconds to split into files of one weight each. */
  async function withLongSplit(use: (model: string) => Promise<void>): Promise<void> {
    const weights = Array.from({ length: 5000 }, (_, i) => ({ name: `w${i}`, dtype: 'float32', shape: [1] }));
    const source = await newFolder();
    const model = join(source, 'model.json');
    writeFileSync(model, JSON.stringify({ modelTopology: {}, weightsManifest: [{ paths: ['w.bin'], weights }] }));
    writeFileSync(join(source, 'w.bin'), Buffer.alloc(4 * weights.length));
    await use(model).finally(() => rm(source, { recursive: true }));
  }

  test('that it asks for leaves nothing: split-tfjs', async () => {
    await withLongSplit(async (model) => {
      const { code, stdout } = await runChild('save-exit.child.cjs', [folder, 'split-tfjs', model]);
      expect([code, stdout, readdirSync(folder)]).toEqual([3, 'begun\n', []]);
    });
  });

  test.each(['SIGHUP', 'SIGINT', 'SIGTERM'] as const)('by %s leaves nothing where it is a command', async (signal) => {
    await withLongSplit(async (model) => {
      const args = ['split-tfjs', model, '--out', folder, '--max-shard-bytes', '1'];
      const command = spawn(process.execPath, [join(__dirname, '..', 'dist', 'src', 'cli', 'main.js'), ...args]);
      const ended = once(command, 'exit');
      while (readdirSync(folder).length < 2) await setTimeout(1);
      command.kill(signal);
      expect([...(await ended), readdirSync(folder)]).toEqual([null, signal, []]);
    });
  });

  test('removes a folder in which a file was made meanwhile', () => {
    const own = temporaryIn(folder);
    mkdirSync(own);
    const release = removedAtExit(own);
    const { rmSync } = fs;
    jest.spyOn(fs, 'rmSync').mockImplementationOnce((path, options) => {
      writeFileSync(join(own, 'late'), '');
      rmSync(path, options);
      mkdirSync(own);
      throw Object.assign(new Error('a file was made'), { code: 'ENOTEMPTY' });
    });
    removeTemporaries();
    release();
    expect(readdirSync(folder)).toEqual([]);
  });

  test('by a kill leaves what the next saveFile to the folder removes', async () => {
    await runChild('save-exit.child.cjs', [folder, 'killed']);
    expect(readdirSync(folder)).toEqual([expect.stringMatching(/^\.fst-/)]);
    writeFileSync(join(folder, '.fst-not-ours.tmp'), '');
    await saveFile(model(1), join(folder, 'm.safetensors'));
    expect(readdirSync(folder).sort()).toEqual(['.fst-not-ours.tmp', 'm.safetensors']);
  });
});
