import fs, {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import fsp, { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type DeviceTensor,
  fastsafeOpen,
  loadFile,
  ParallelLoader,
  SafeTensorsMetadata,
  type SaveTensor,
  saveFile,
  saveSharded,
} from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { runChild } from './support/child.js';
import { failLinks, failRenames } from './support/failing-files.js';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// A model in several files: cut and named as Hugging Face does, streamed, and put in place of another one as a whole.

let folder: string;
let out: string;
beforeEach(async () => {
  folder = await newFolder();
  out = join(folder, 'out');
});
afterEach(async () => {
  jest.restoreAllMocks();
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

const INDEX = 'model.safetensors.index.json';
const bytes = (name: string, length: number, fill: number): SaveTensor => ({
  name,
  shape: [length],
  data: new Uint8Array(length).fill(fill),
});
/** Tensors a, b, … of 8 bytes each, `fill` in all of them. */
const model = (count: number, fill: number): SaveTensor[] =>
  Array.from({ length: count }, (_, i) => bytes(String.fromCharCode(97 + i), 8, fill));
const shards = (count: number): string[] =>
  Array.from({ length: count }, (_, i) => `model-0000${i + 1}-of-0000${count}.safetensors`);

async function* stream(tensors: readonly SaveTensor[]): AsyncGenerator<[string, SaveTensor]> {
  for (const tensor of tensors) yield [tensor.name!, tensor];
}

/** Every byte of the model in the folder, by tensor; or the code with which it is refused. */
async function found(path = out): Promise<Record<string, number[]> | string> {
  try {
    const tensors = await loadFile(path);
    const all = Object.entries(tensors).map(([name, tensor]) => {
      const values = [...new Uint8Array(tensor.data.buffer, tensor.data.byteOffset, tensor.byteLength)];
      tensor.dispose();
      return [name, values];
    });
    return Object.fromEntries(all.sort());
  } catch (error) {
    return (error as { code: string }).code;
  }
}

const filled = (count: number, fill: number): Record<string, number[]> =>
  Object.fromEntries(model(count, fill).map(({ name }) => [name, new Array(8).fill(fill)]));

describe('files', () => {
  test('are cut in the order given, and named and indexed as Hugging Face does', async () => {
    const tensors = [bytes('b', 24, 1), bytes('large', 100, 2), bytes('a', 8, 3), bytes('é"', 16, 4)];
    await saveSharded(tensors, out, { maxShardBytes: 32, metadata: { format: 'pt' } });
    const [one, two, three] = shards(3);
    expect(readdirSync(out).sort()).toEqual([...shards(3), INDEX]);
    expect(readFileSync(join(out, INDEX), 'utf8')).toBe(
      `{\n  "metadata": {\n    "total_size": 148\n  },\n  "weight_map": {\n    "a": "${one}",\n` +
        `    "b": "${one}",\n    "large": "${two}",\n    "é\\"": "${three}"\n  }\n}\n`,
    );
    for (const [file, part] of [
      [one!, [tensors[0]!, tensors[2]!]],
      [two!, [tensors[1]!]],
      [three!, [tensors[3]!]],
    ] as const) {
      const alone = join(folder, file);
      await saveFile(part, alone, { metadata: { format: 'pt' } });
      expect(readFileSync(join(out, file)).equals(readFileSync(alone))).toBe(true);
    }
  });

  test('are one, without an index, where that is enough; of no tensors, too', async () => {
    await saveSharded({ x: { shape: [2], data: Float32Array.of(1, 2) } }, out);
    expect(readdirSync(out)).toEqual(['model.safetensors']);
    await saveSharded([], out);
    expect(readdirSync(out)).toEqual(['model.safetensors']);
    expect(await found()).toEqual({});
    await saveSharded(stream([]), out);
    expect(await found()).toEqual({});
  });

  test('of a stream: the same tensors, aligned, in files of the same size', async () => {
    const odd = [bytes('o1', 3, 1), bytes('w', 16, 2), bytes('o2', 5, 3), bytes('z', 0, 4), bytes('x', 8, 5)];
    const wide = { name: 'f', shape: [3], data: Float32Array.of(1, 2, 3) };
    await saveSharded(stream([...odd, wide]), out, { metadata: { a: 'b' } });
    const header = await SafeTensorsMetadata.fromFile(join(out, 'model.safetensors'));
    expect([...header.metadata]).toEqual([['a', 'b']]);
    expect([...header].map(({ name, dataOffsets }) => [name, ...dataOffsets])).toEqual([
      ['w', 0, 16],
      ['z', 16, 16],
      ['x', 16, 24],
      ['f', 24, 36],
      ['o1', 36, 39],
      ['o2', 39, 44],
    ]);
    expect(header.headerLength).toBeLessThan(600); // no room is left
    await saveSharded(stream(model(7, 9)), out, { maxShardBytes: 24, parallel: 2 });
    expect(readdirSync(out).sort()).toEqual([...shards(3), INDEX]);
    expect(await found()).toEqual(filled(7, 9));
  });

  test('of a stream whose header is larger than the room that was left, or smaller, are whole', async () => {
    const names = Array.from({ length: 5000 }, (_, i) => `${'long'.repeat(20)}.${i}`);
    const many = names.map((name, i) => bytes(name, 16, i & 255));
    await saveSharded(stream(many), out);
    const loaded = (await found()) as Record<string, number[]>;
    expect(Object.keys(loaded).length).toBe(5000);
    for (const [i, name] of names.entries()) expect(loaded[name]).toEqual(new Array(16).fill(i & 255));

    const large = { name: 'large', shape: [65 * 2 ** 20], data: new Uint8Array(65 * 2 ** 20) };
    large.data.set([1, 2, 3], 65 * 2 ** 20 - 3);
    await saveSharded(stream([large]), out);
    const header = await SafeTensorsMetadata.fromFile(join(out, 'model.safetensors'));
    expect(header.headerLength + 8).toBe(256 * 1024); // the data was not moved
    const written = readFileSync(join(out, 'model.safetensors'));
    expect(written.subarray(256 * 1024).equals(large.data)).toBe(true);
  });

  test('keep the mode of those that they replace', async () => {
    await saveSharded(model(2, 1), out, { maxShardBytes: 8 });
    for (const file of readdirSync(out)) chmodSync(join(out, file), 0o600);
    await saveSharded(model(3, 2), out, { maxShardBytes: 8 });
    for (const file of readdirSync(out)) expect(statSync(join(out, file)).mode & 0o777).toBe(0o600);
  });

  test('are synced before they have their names, and not where fsync is false', async () => {
    const { fsync } = fs;
    const synced: string[] = [];
    jest.spyOn(fs, 'fsync').mockImplementation((fd, done) => {
      synced.push(readlinkSync(`/proc/self/fd/${fd}`));
      fsync(fd, done);
    });
    await saveSharded(model(2, 1), out, { maxShardBytes: 8 });
    const hidden = synced.filter((path) => /\.fst-[^/]*\.tmp\/[^/]+$/.test(path));
    expect(hidden.length).toBe(3);
    expect(synced.slice(0, 3)).toEqual(hidden);
    expect(synced.at(-1)).toBe(out);
    synced.length = 0;
    await saveSharded(model(3, 2), out, { maxShardBytes: 8, fsync: false });
    expect(synced).toEqual([]);
  });
});

describe('a stream', () => {
  beforeAll(() => useFakeDevices({ copyDelayUs: 0 }));
  afterAll(() => useFakeDevices(null));

  test.each(['cpu', 'cuda:0'])(
    'from a loader on %s is written as it comes, each tensor then disposed',
    async (device) => {
      const entries = Array.from({ length: 12 }, (_, i) => entry(`t${i}`, 'F16', [300, 1000 + i]));
      const source = await writeModel(folder, entries);
      const seen: DeviceTensor[] = [];
      const loader = new ParallelLoader({ files: source, device, maxBatchBytes: 2 ** 20 });
      async function* watched(): AsyncGenerator<[string, DeviceTensor]> {
        for await (const [name, tensor] of loader) {
          expect(seen.filter(({ disposed }) => !disposed).length).toBeLessThanOrEqual(4);
          seen.push(tensor);
          yield [name, tensor];
        }
      }
      await saveSharded(watched(), out, { maxShardBytes: 2_000_000 });
      expect(seen.map(({ disposed }) => disposed)).toEqual(entries.map(() => true));
      const model = await fastsafeOpen(out);
      for (const { name, bytes } of entries) {
        const tensor = await model.getTensor(name);
        expect(Buffer.from(await tensor.toHost()).equals(bytes)).toBe(true);
        tensor.dispose();
      }
      await model.close();
    },
  );

  test('into the folder that it comes from', async () => {
    await saveSharded(model(6, 3), out, { maxShardBytes: 16 });
    await saveSharded(new ParallelLoader({ files: out, mmap: true }), out, { maxShardBytes: 24 });
    expect(readdirSync(out).sort()).toEqual([...shards(2), INDEX]);
    await saveSharded(new ParallelLoader({ files: out }), out, { maxShardBytes: 24 });
    expect(readdirSync(out).sort()).toEqual([...shards(2), INDEX]);
    expect(await found()).toEqual(filled(6, 3));
  });

  test('that fails ends the save with its error; what it gave is disposed, and the folder as it was', async () => {
    await saveSharded(model(2, 1), out, { maxShardBytes: 8 });
    const source = await writeModel(folder, [entry('x', 'U8', [40]), entry('y', 'U8', [41])]);
    const tensors = Object.values(await loadFile(source));
    const error = new Error('no more');
    async function* failing(): AsyncGenerator<[string, DeviceTensor]> {
      for (const tensor of tensors) yield [tensor.name, tensor];
      throw error;
    }
    await expect(saveSharded(failing(), out)).rejects.toBe(error);
    expect(tensors.map(({ disposed }) => disposed)).toEqual([true, true]);
    expect(readdirSync(out).sort()).toEqual([...shards(2), INDEX]);
    expect(await found()).toEqual(filled(2, 1));
  });

  test('is left at once by an abort, with its reason, and ended', async () => {
    const abort = new AbortController();
    let ended = false;
    const waiting = {
      async *[Symbol.asyncIterator](): AsyncGenerator<[string, SaveTensor]> {
        try {
          yield ['a', bytes('a', 8, 1)];
          await new Promise((resolve) => setTimeout(resolve, 50, abort.abort('enough')));
          yield ['b', bytes('b', 8, 1)];
        } finally {
          ended = true;
        }
      },
    };
    await expect(saveSharded(waiting, out, { signal: abort.signal })).rejects.toBe('enough');
    expect([ended, readdirSync(out)]).toEqual([false, []]);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(ended).toBe(true);
  });
});

describe('refused', () => {
  test.each([
    ['a tensor that comes twice', [bytes('a', 8, 1), bytes('a', 8, 2)], 'DUPLICATE_TENSOR'],
    ['a tensor whose shape is another', [{ name: 'a', shape: [3], data: new Uint8Array(4) }], 'TENSOR_INVALID_INFO'],
    ['what is no tensor', [7 as never], 'INVALID_ARGUMENT'],
  ])('%s, of a list and of a stream', async (_, tensors, code) => {
    await saveSharded(model(2, 1), out);
    await expect(saveSharded(tensors, out)).rejects.toMatchObject({ code });
    async function* given(): AsyncGenerator<SaveTensor> {
      yield* tensors;
    }
    await expect(saveSharded(given(), out)).rejects.toMatchObject({ code });
    expect([readdirSync(out), await found()]).toEqual([['model.safetensors'], filled(2, 1)]);
  });

  test.each([
    [{ maxShardBytes: 0 }, /^maxShardBytes: /],
    [{ parallel: 0 }, /^parallel: /],
    [{ fsync: 1 }, /^fsync: /],
    [{ checksum: 1 }, /^checksum: /],
    [{ maxShardByte: 8 }, /did you mean "maxShardBytes"/],
    [{ metadata: { a: 1 } }, /^saveSharded: metadata "a"/],
  ])('options %j', async (options, message) => {
    const refused = { code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) };
    await expect(saveSharded([], out, options as never)).rejects.toMatchObject(refused);
    expect(existsSync(out)).toBe(false);
  });

  test.each(['other.safetensors', 'model.fp16.safetensors', 'other.safetensors.index.json'])(
    'a folder with %s, which would be loaded as well or in its place',
    async (name) => {
      mkdirSync(out);
      writeFileSync(join(out, name), '{}');
      const refused = { code: 'INVALID_ARGUMENT', message: expect.stringContaining(name) };
      await expect(saveSharded(model(1, 1), out)).rejects.toMatchObject(refused);
      expect(readdirSync(out)).toEqual([name]);
    },
  );
});

describe('in place of another set', () => {
  const OLD = {
    'a set of as many files': async () => saveSharded(model(3, 1), out, { maxShardBytes: 8 }),
    'a set of more files': async () => saveSharded(model(5, 1), out, { maxShardBytes: 8 }),
    'a set without its index': async () => {
      await saveSharded(model(3, 1), out, { maxShardBytes: 8 });
      rmSync(join(out, INDEX));
    },
    'one file': async () => saveSharded(model(3, 1), out),
    'a set of links': async () => {
      await saveSharded(model(3, 1), join(folder, 'blobs'), { maxShardBytes: 8 });
      mkdirSync(out);
      for (const name of readdirSync(join(folder, 'blobs'))) symlinkSync(`../blobs/${name}`, join(out, name));
    },
    'what cannot be loaded': async () => {
      await saveSharded(model(3, 1), out, { maxShardBytes: 8 });
      rmSync(join(out, shards(3)[1]!));
    },
    'what cannot be loaded, without an index': async () => {
      await OLD['what cannot be loaded']();
      rmSync(join(out, INDEX));
    },
    nothing: async () => {},
  };
  const NEW = { 'of three files': 8, 'of one': 1000 };
  const cases = Object.keys(OLD).flatMap((old) =>
    Object.entries(NEW).flatMap(([what, maxShardBytes]) =>
      [true, false].map((links) => ({ old: old as keyof typeof OLD, what, maxShardBytes, links })),
    ),
  );

  test.each(cases)('$old: one $what, hard links: $links; each step is old, new or refused', async (given) => {
    await OLD[given.old]();
    const before = await found();
    const after = filled(3, 2);
    const states: unknown[] = [];
    // Each step is one rename, link or removal.
    for (const step of ['rename', 'rm', 'link'] as const) {
      const original = fsp[step] as (...args: unknown[]) => Promise<void>;
      jest.spyOn(fsp, step).mockImplementation((async (...args: unknown[]) => {
        if (step === 'link' && !given.links) throw Object.assign(new Error('no links'), { code: 'EPERM' });
        await original(...args);
        states.push(await found());
      }) as never);
    }
    await saveSharded(model(3, 2), out, { maxShardBytes: given.maxShardBytes });
    jest.restoreAllMocks();
    expect(await found()).toEqual(after);
    const files = given.maxShardBytes === 8 ? [...shards(3), INDEX] : ['model.safetensors'];
    expect(readdirSync(out).sort()).toEqual(files);
    if (existsSync(join(folder, 'blobs'))) expect(await found(join(folder, 'blobs'))).toEqual(filled(3, 1));
    expect(states.length).toBeGreaterThan(1);
    // First old, then new: never back, and never a mixture. Between them, where it cannot be helped, it is refused; so
    // it is while old files are renamed.
    const kinds = states.map((state) => {
      if (typeof state === 'string') return 'refused';
      expect([before, after]).toContainEqual(state);
      return JSON.stringify(state) === JSON.stringify(after) ? 'new' : 'old';
    });
    expect(kinds.join(' ')).toMatch(given.links ? /^(old ?)*(refused ?)*(new ?)*$/ : /^((old|refused) ?)*(new ?)*$/);
    if (given.links && typeof before !== 'string') expect(kinds).not.toContain('refused');
  });

  test.each([true, false])(
    'where a rename fails, hard links: %s, the old set stays, or data that is refused',
    async (links) => {
      for (let failing = 0; ; ++failing) {
        rmSync(out, { recursive: true, force: true });
        await saveSharded(model(3, 1), out, { maxShardBytes: 8 });
        failRenames((nth) => nth === failing);
        if (!links) failLinks();
        const saved = await saveSharded(model(3, 2), out, { maxShardBytes: 8 }).then(
          () => true,
          ({ code }) => code,
        );
        jest.restoreAllMocks();
        if (saved === true) {
          expect(failing).toBeGreaterThan(3);
          expect(await found()).toEqual(filled(3, 2));
          return;
        }
        expect(saved).toBe('IO_ERROR');
        expect(await found()).toEqual(filled(3, 1));
      }
    },
  );

  /** Has the set replaced when a reader has come to the last of its headers. */
  function replaceAtLastHeader(): void {
    const { read } = SafeTensorsMetadata;
    let saved: Promise<void> | undefined;
    jest.spyOn(SafeTensorsMetadata, 'read').mockImplementation(async (path, options) => {
      if (!saved && path.endsWith(shards(3)[2]!)) {
        saved = saveSharded(model(3, 2), out, { maxShardBytes: 8 });
        await saved;
      }
      return read.call(SafeTensorsMetadata, path, options);
    });
  }

  test('a reader that has read the old index gets FILE_CHANGED, and not files of both', async () => {
    await saveSharded(model(3, 1), out, { maxShardBytes: 8 });
    replaceAtLastHeader();
    expect(await found()).toBe('FILE_CHANGED');
    jest.restoreAllMocks();
    expect(await found()).toEqual(filled(3, 2));
  });

  test('a reader of a set without an index gets FILE_CHANGED, too', async () => {
    await OLD['a set without its index']();
    replaceAtLastHeader();
    expect(await found()).toBe('FILE_CHANGED');
  });
});

describe('what a crash leaves', () => {
  test('of a process that died is removed by the next save; of one that lives, it is refused', async () => {
    const { stdout } = await runChild('save-sharded.child.cjs', [out, 'die']);
    expect(stdout).toContain('written');
    const left = readdirSync(out).filter((name) => name.startsWith('.fst-'));
    expect(left.length).toBe(2); // of saveSharded and of saveFile
    // As if this process, which lives, had made them.
    const own = await nameOfOwn();
    const other = left.map(() => own.replace(/-[0-9a-f-]{36}\.tmp/, `-${crypto.randomUUID()}.tmp`));
    for (const [i, name] of left.entries()) renameSync(join(out, name), join(out, other[i]!));
    const busy = { code: 'IO_ERROR', message: expect.stringContaining('another model is being written') };
    await expect(saveSharded(model(2, 1), out)).rejects.toMatchObject(busy);
    expect(readdirSync(out).sort()).toEqual([...other].sort());
    for (const [i, name] of left.entries()) renameSync(join(out, other[i]!), join(out, name));
    await saveSharded(model(2, 1), out);
    expect(readdirSync(out)).toEqual(['model.safetensors']);
  });

  test('two saves into one folder at a time: at most one of them is carried out', async () => {
    const both = await Promise.allSettled([saveSharded(model(3, 1), out), saveSharded(model(3, 2), out)]);
    for (const result of both)
      if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'IO_ERROR' });
    expect(both.some(({ status }) => status === 'rejected')).toBe(true);
    expect(readdirSync(out).filter((name) => name.startsWith('.'))).toEqual([]);
  });

  /** The name of a temporary folder of this process. */
  async function nameOfOwn(): Promise<string> {
    let name = '';
    async function* looking(): AsyncGenerator<[string, SaveTensor]> {
      name = readdirSync(join(folder, 'own'))[0]!;
      yield ['a', bytes('a', 8, 1)];
    }
    await saveSharded(looking(), join(folder, 'own'));
    return name;
  }
});

test('a full disk leaves the old set, and no temporary file', async () => {
  await saveSharded(model(3, 1), out, { maxShardBytes: 8 });
  const handle = await open(folder);
  const prototype = Object.getPrototypeOf(handle) as { write: unknown };
  await handle.close();
  const full = Object.assign(new Error('no space left'), { code: 'ENOSPC', syscall: 'write' });
  jest.spyOn(prototype as never, 'write').mockRejectedValue(full as never);
  await expect(saveSharded(model(3, 2), out)).rejects.toMatchObject({ code: 'IO_ERROR', path: out });
  jest.restoreAllMocks();
  expect(readdirSync(out).sort()).toEqual([...shards(3), INDEX]);
  expect(await found()).toEqual(filled(3, 1));
});
