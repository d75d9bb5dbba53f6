import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fastsafeOpen, ParallelLoader, SafeTensorsMetadata } from 'fastsafetensors-node';
import { CallWatch } from '../src/base/waiting.js';
import { type ModelOptions, modelOf } from '../src/cli/save-model.js';
import { saveSet } from '../src/safetensors/save-sharded.js';
import { StoredModel, StoredTensor } from '../src/safetensors/save-stored.js';
import { readShards } from '../src/safetensors/shards.js';
import { runCli } from './support/cli.js';
import { expectNothingHeld } from './support/metrics.js';
import { type Entry, encodeFile, entry, newFolder } from './support/model-files.js';

// Tensors that go into other files as they are: from file to file, none of them loaded.

const MIB = 2 ** 20;

let folder: string;
let source: string;
let out: string;
beforeEach(async () => {
  folder = await newFolder();
  source = join(folder, 'source');
  out = join(folder, 'out');
  await mkdir(source);
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

const shard = (i: number, count: number): string => `model-0000${i + 1}-of-0000${count}.safetensors`;

/** A model of as many files as there are lists, in `source`. */
function write(...files: (readonly Entry[])[]): void {
  for (const [i, entries] of files.entries())
    writeFileSync(join(source, shard(i, files.length)), encodeFile(entries, { padding: 3 * i }));
}

async function expectSame(path: string, entries: readonly Entry[]): Promise<void> {
  const model = await fastsafeOpen(path);
  expect([...model.keys()].sort()).toEqual(entries.map(({ name }) => name).sort());
  for (const { name, bytes } of entries) {
    const tensor = await model.getTensor(name);
    expect(Buffer.from(await tensor.toHost()).equals(bytes)).toBe(true);
    tensor.dispose();
  }
  await model.close();
}

async function modelIn(path: string, options: ModelOptions = {}): ReturnType<typeof modelOf> {
  const shards = await readShards(path, {});
  const names = shards.metadata.flatMap((metadata) => [...metadata].map(({ name }) => name));
  return modelOf(path, shards, new Set(names), options);
}

/** What becomes of each tensor, in order. */
async function waysOf(model: Awaited<ReturnType<typeof modelOf>>): Promise<string[]> {
  if (model instanceof StoredModel) return model.tensors.map(({ name }) => `${name} copied`);
  const ways: string[] = [];
  for await (const tensor of model) {
    if (tensor instanceof StoredTensor) ways.push(`${tensor.name} copied`);
    else {
      const [name, loaded] = tensor as unknown as [string, { dispose(): void }];
      ways.push(`${name} loaded`);
      loaded.dispose();
    }
  }
  return ways;
}

const many = Array.from({ length: 300 }, (_, i) => entry(`n${i}`, 'F32', [1 + (i % 9), 5]));
const odd = [entry('odd.0', 'U8', [13]), entry('half', 'F16', [3])];
const large = entry('large', 'BF16', [17 * MIB + 4]); // several copies

test('tensors of several files, some larger than one copy, come to files of another size byte for byte', async () => {
  write([...many.slice(0, 200), odd[0]!, large], [odd[1]!, entry('empty', 'F32', [0]), ...many.slice(200)]);
  const { stdout, stderr, exitCode } = await runCli('reshard', source, out, '--max-shard-bytes', '9KB', '--json');
  expect([stderr, exitCode]).toEqual(['', 0]);
  const names = (JSON.parse(stdout).files as string[]).map((path) => path.slice(out.length + 1));
  expect(names.length).toBeGreaterThan(4);
  expect(readdirSync(out).sort()).toEqual([...names, 'model.safetensors.index.json']);
  await expectSame(out, [...many, ...odd, large, entry('empty', 'F32', [0])]);
  // In place of itself, and as one file.
  expect((await runCli('reshard', out, out, '--checksum')).exitCode).toBe(0);
  expect(readdirSync(out)).toEqual(['model.safetensors']);
  await expectSame(out, [...many, ...odd, large, entry('empty', 'F32', [0])]);
  const loader = new ParallelLoader({ files: out, checksum: 'require' });
  for await (const [, tensor] of loader) tensor.dispose();
  expect(loader.report.verifiedTensors).toBe(304);
});

test('no room is left before the data, and what would misalign others is last', async () => {
  write([many[0]!, odd[0]!, odd[1]!], [many[1]!]); // of 20, 13, 6 and 40 bytes
  await saveSet(await modelIn(source), out);
  const header = await SafeTensorsMetadata.fromFile(join(out, 'model.safetensors'));
  expect([...header].map(({ name }) => name)).toEqual(['n1', 'n0', 'half', 'odd.0']);
  expect(header.headerLength).toBeLessThan(600);
  expect(readFileSync(join(out, 'model.safetensors')).length).toBe(header.dataStart + 40 + 20 + 6 + 13);
});

test('data of large files begins at the same place in a page as in the file that it comes from', async () => {
  const huge = ['x', 'y'].map((name) => entry(name, 'BF16', [17 * MIB + 4]));
  const entries = [...huge, odd[0]!];
  const paddings = Array.from({ length: 8 }, (_, padding) => encodeFile(entries, { padding }));
  const aligned = paddings.find((file) => Number(file.readBigUInt64LE(0)) % 8 === 0)!;
  writeFileSync(join(source, shard(0, 1)), aligned);
  for (const checksum of [false, true]) {
    await saveSet(await modelIn(source), out, { checksum, fsync: false });
    const header = await SafeTensorsMetadata.fromFile(join(out, 'model.safetensors'));
    const from = await SafeTensorsMetadata.fromFile(join(source, shard(0, 1)));
    expect(header.dataStart % 4096).toBe(from.dataStart % 4096);
    await expectSame(out, entries);
  }
});

test('loaded are tensors that are converted, and those of files with digests, in the order of files', async () => {
  const ids = entry('ids', 'I64', [9]);
  write([many[0]!, ids, odd[0]!], [many[1]!, odd[1]!]);
  const copied = ['n0 copied', 'ids copied', 'odd.0 copied', 'n1 copied', 'half copied'];
  expect(await waysOf(await modelIn(source))).toEqual(copied);
  const converted = ['n0 loaded', 'ids copied', 'odd.0 copied', 'n1 loaded', 'half copied'];
  expect(await waysOf(await modelIn(source, { dtype: 'F16' }))).toEqual(converted);

  await runCli('checksum', join(source, shard(1, 2)));
  const verified = ['n0 copied', 'ids copied', 'odd.0 copied', 'n1 loaded', 'half loaded'];
  expect(await waysOf(await modelIn(source))).toEqual(verified);
  await saveSet(await modelIn(source), out);
  await expectSame(out, [many[0]!, ids, odd[0]!, many[1]!, odd[1]!]);
  // What the load found wrong is not written.
  const path = join(source, shard(1, 2));
  const bytes = readFileSync(path);
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(path, bytes);
  const { stderr, exitCode } = await runCli('reshard', source, out);
  expect([exitCode, stderr]).toEqual([1, expect.stringContaining('CHECKSUM_MISMATCH')]);
  await expectSame(out, [many[0]!, ids, odd[0]!, many[1]!, odd[1]!]);
});

test('a file that is written meanwhile is FILE_CHANGED, and the folder as it was', async () => {
  write([many[1]!]);
  await saveSet(await modelIn(source), out);
  const before = readFileSync(join(out, 'model.safetensors'));
  write([many[1]!, large]);
  const [metadata] = (await readShards(source, {})).metadata;
  const calls = new CallWatch();
  async function* changing(): AsyncGenerator<StoredTensor> {
    yield new StoredTensor(metadata!, 0, calls);
    writeFileSync(metadata!.path, readFileSync(metadata!.path));
    yield new StoredTensor(metadata!, 1, calls);
  }
  const changed = { code: 'FILE_CHANGED', path: metadata!.path };
  await expect(saveSet(changing(), out)).rejects.toMatchObject(changed);
  expect(readdirSync(out)).toEqual(['model.safetensors']);
  expect(readFileSync(join(out, 'model.safetensors')).equals(before)).toBe(true);
});

test('an abort ends the copies with its reason, and the folder is as it was', async () => {
  write([large, many[1]!]);
  const model = await modelIn(source);
  const abort = new AbortController();
  const saving = saveSet(model, out, { signal: abort.signal, fsync: false });
  abort.abort('enough');
  await expect(saving).rejects.toBe('enough');
  expect(readdirSync(out)).toEqual([]);
});
