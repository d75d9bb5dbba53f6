import { createHash } from 'node:crypto';
import { mkdir, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type DeviceTensor,
  fastsafeOpen,
  type LoaderOptions,
  type LoadReport,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { type Entry, encodeFile, entry, newFolder } from './support/model-files.js';

// What loaders do with digests: nothing is handed out whose bytes have another one. Digests are those of node:crypto
// here; those of xxhsum are compared in C++ and by the command.

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

const entries: Entry[] = [
  entry('long', 'F32', [1500, 1100]), // several reads
  entry('none', 'F32', [0, 3]),
  entry('short', 'U8', [3]),
  entry('half', 'F16', [70, 11]),
];
const digests = Object.fromEntries(entries.map(({ name, bytes }) => [name, sha256(bytes)]));
const file = encodeFile(entries);
const header = file.subarray(0, file.byteLength - entries.reduce((sum, { bytes }) => sum + bytes.byteLength, 0));
const sums = { size: file.byteLength, header: sha256(header), tensors: digests };

let folder: string;
beforeEach(async () => {
  folder = await newFolder();
});
afterEach(() => rm(folder, { recursive: true }));

interface Written {
  file?: Uint8Array;
  sums?: object | string | null;
}

async function write({ file: bytes = file, sums: text = sums }: Written = {}): Promise<string> {
  const path = join(folder, 'model.safetensors');
  await writeFile(path, bytes);
  if (text !== null) await writeFile(`${path}.sums.json`, typeof text === 'string' ? text : JSON.stringify(text));
  return path;
}

/** The file with one bit turned over, of a tensor's byte or, without a name, of the file's. */
function flipped(at: number, name?: string): Uint8Array {
  let offset = at;
  if (name !== undefined) {
    offset += header.byteLength;
    for (const each of entries) {
      if (each.name === name) break;
      offset += each.bytes.byteLength;
    }
  }
  const bytes = Buffer.from(file);
  bytes[offset]! ^= 1 << (at % 8);
  return bytes;
}

type Loaded = { names: string[]; report: LoadReport };

/** Every way to load a whole model; what it hands out is compared. */
const ways: Record<string, (path: string, options?: LoaderOptions) => Promise<Loaded>> = {
  ParallelLoader: async (path, options) => {
    const loader = new ParallelLoader({ files: path, ...options });
    const names: string[] = [];
    for await (const [name, tensor] of loader) names.push(await checked(name, tensor));
    return { names, report: loader.report };
  },
  "ParallelLoader as 'ready'": async (path, options) => {
    const loader = new ParallelLoader({ files: path, order: 'ready', ...options });
    const names: string[] = [];
    for await (const [name, tensor] of loader) names.push(await checked(name, tensor));
    return { names, report: loader.report };
  },
  SafeTensorsFileLoader: async (path, options) => {
    await using loader = new SafeTensorsFileLoader(options);
    await loader.addFilenames(path);
    await using buffer = await loader.copyFilesToDevice();
    const names: string[] = [];
    for (const name of buffer.keys()) names.push(await checked(name, await buffer.getTensor(name)));
    return { names, report: loader.report };
  },
};

async function checked(name: string, tensor: DeviceTensor): Promise<string> {
  const { bytes } = entries.find((each) => each.name === name)!;
  expect(Buffer.from(await tensor.toHost()).equals(bytes)).toBe(true);
  tensor.dispose();
  return name;
}

const styles: [string, LoaderOptions][] = [
  ['by default', {}],
  ['copied', { mmap: false }],
  ['mapped', { mmap: true }],
  ['through slots', { staging: 'always', bounceBufferSize: 65536 }],
  ['past the page cache', { odirect: true }],
];
const each = Object.keys(ways).flatMap((way) => styles.map(([style, options]) => [way, style, options] as const));

test.each(each)('%s, %s: tensors that have their digests come, and are counted', async (way, _style, options) => {
  const path = await write();
  const { names, report } = await ways[way]!(path, { checksum: 'require', ...options });
  expect(names.sort()).toEqual(entries.map(({ name }) => name).sort());
  expect(report).toMatchObject({ tensors: 4, verifiedTensors: 4 });
});

test.each(each)('%s, %s: a flipped bit is found and named', async (way, _style, options) => {
  const at = 3_000_001;
  const path = await write({ file: flipped(at, 'long') });
  const found = sha256(flipped(at, 'long').subarray(header.byteLength, header.byteLength + 6_600_000));
  await expect(ways[way]!(path, options)).rejects.toMatchObject({
    code: 'CHECKSUM_MISMATCH',
    path,
    tensor: 'long',
    offset: header.byteLength,
    message: expect.stringMatching(
      new RegExp(`^${path}: tensor "long": expected ${digests.long} .* found ${found}: .*get it again`),
    ),
  });
});

test('tensors before a damaged one come, the damaged one and those after it do not', async () => {
  const path = await write({ file: flipped(1, 'short') });
  const loader = new ParallelLoader({ files: path });
  const names: string[] = [];
  const all = async (): Promise<void> => {
    for await (const [name, tensor] of loader) names.push(await checked(name, tensor));
  };
  await expect(all()).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: 'short' });
  expect(names).not.toContain('short');
  expect(names).not.toContain('half');
});

test('a flipped bit of the header is found by its digest', async () => {
  const at = header.indexOf('"half"') + 1; // another name
  const path = await write({ file: flipped(at), sums: { ...sums, tensors: {} } });
  for (const way of Object.values(ways))
    await expect(way(path)).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', path, offset: 0 });
});

test('fastsafeOpen compares each tensor that it reads', async () => {
  const path = await write({ file: flipped(1, 'short') });
  await using files = await fastsafeOpen(path);
  for (let i = 0; i < 3; ++i) {
    await checked('half', await files.getTensor('half')); // from the second time on small ones would be read at once
    await expect(files.getTensor('short')).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: 'short' });
    await expect(files.getTensors(['long', 'short'])).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH' });
  }
});

test('the digest is that of the bytes in the file where the load converts them', async () => {
  const good = await write();
  const load = async (path: string): Promise<LoadReport> => {
    const loader = new ParallelLoader({ files: path, dtype: 'BF16' });
    for await (const [, tensor] of loader) tensor.dispose();
    return loader.report;
  };
  expect(await load(good)).toMatchObject({ verifiedTensors: 4 });
  const bad = await write({ file: flipped(7, 'half') });
  await expect(load(bad)).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: 'half' });
});

test('digests of the header serve where no file has any', async () => {
  const metadata = { 'fastsafetensors.sums': JSON.stringify({ tensors: digests }) };
  const good = encodeFile(entries, { metadata });
  const { report } = await ways.ParallelLoader!(await write({ file: good, sums: null }), { checksum: 'require' });
  expect(report.verifiedTensors).toBe(4);
  const bad = Buffer.from(good);
  bad[bad.byteLength - 1]! ^= 1;
  const path = await write({ file: bad, sums: null });
  await expect(ways.ParallelLoader!(path)).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: 'half' });
});

test("'auto' compares what has a digest, 'require' needs one for each, false compares nothing", async () => {
  const { long: _, ...some } = digests;
  const path = await write({ sums: { tensors: some } });
  const load = ways.ParallelLoader!;
  expect((await load(path)).report).toMatchObject({ tensors: 4, verifiedTensors: 3 });
  await expect(load(path, { checksum: 'require' })).rejects.toMatchObject({
    code: 'CHECKSUM_MISMATCH',
    tensor: 'long',
    message: expect.stringContaining('fastsafetensors-node checksum'),
  });
  const none = await write({ sums: '{}' });
  expect((await load(none, { checksum: false })).report.verifiedTensors).toBe(0);
  await rm(`${path}.sums.json`);
  expect((await load(path)).report.verifiedTensors).toBe(0);
  await expect(load(path, { checksum: 'require' })).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH' });
});

test('a part of a tensor cannot be compared: a note says so, and with require an error', async () => {
  const path = await write();
  await using files = await fastsafeOpen(path);
  const slice = await files.getSlice('long', { stop: 2 });
  expect(slice.shape).toEqual([2, 1100]);
  slice.dispose();
  await using strict = await fastsafeOpen(path, { checksum: 'require' });
  await expect(strict.getSlice('long', { stop: 2 })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('a part of tensor "long"'),
  });
  await using ranks = new SafeTensorsFileLoader({ pg: { rank: 0, size: 2 } });
  await ranks.addFilenames(path);
  await using buffer = await ranks.copyFilesToDevice();
  (await buffer.getSharded('long', 0)).dispose();
  expect(ranks.report).toMatchObject({ verifiedTensors: 0, notes: [expect.stringContaining('parts of tensors')] });
  (await buffer.getSharded('long', -1)).dispose();
  expect(ranks.report).toMatchObject({ verifiedTensors: 1, notes: [] });
});

const zeros = '0'.repeat(64);
test.each<[string, object | string, object]>([
  ['no JSON', 'digests', { code: 'CHECKSUM_MISMATCH' }],
  ['no object', '[]', { code: 'CHECKSUM_MISMATCH' }],
  ['no digest', { tensors: { long: 'sha256:zz' } }, { code: 'CHECKSUM_MISMATCH', tensor: 'long' }],
  ['no tensor', { tensors: { ...digests, other: `sha256:${zeros}` } }, { code: 'UNKNOWN_TENSOR', tensor: 'other' }],
  ['a key twice', `{"tensors":{"a":"sha256:${zeros}","a":"sha256:${zeros}"}}`, { code: 'DUPLICATE_KEY', tensor: 'a' }],
  ['another size', { ...sums, size: 7 }, { code: 'CHECKSUM_MISMATCH' }],
  ['another header', { ...sums, header: `sha256:${zeros}` }, { code: 'CHECKSUM_MISMATCH' }],
  [
    'an empty tensor that is not',
    { tensors: { none: `sha256:${zeros}` } },
    { code: 'CHECKSUM_MISMATCH', tensor: 'none' },
  ],
  ['__proto__', '{"tensors":{"__proto__":{}}}', { code: 'CHECKSUM_MISMATCH' }],
])('a sums file with %s is refused', async (_what, text, error) => {
  const path = await write({ sums: text });
  for (const way of Object.values(ways)) await expect(way(path)).rejects.toMatchObject(error);
});

test('sums are read of the folder alone where links are not followed', async () => {
  const path = await write();
  const elsewhere = await newFolder();
  await rename(`${path}.sums.json`, join(elsewhere, 'sums.json'));
  await symlink(join(elsewhere, 'sums.json'), `${path}.sums.json`);
  expect((await ways.ParallelLoader!(path)).report.verifiedTensors).toBe(4);
  await expect(ways.ParallelLoader!(path, { followLinks: false })).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH' });
  await rm(elsewhere, { recursive: true });
});

/** As the hub's cache has it. */
async function cached(bytes: Uint8Array, name = createHash('sha256').update(bytes).digest('hex')): Promise<string> {
  await mkdir(join(folder, 'blobs'));
  await mkdir(join(folder, 'snapshots', 'main'), { recursive: true });
  await writeFile(join(folder, 'blobs', name), bytes);
  const path = join(folder, 'snapshots', 'main', 'model.safetensors');
  await symlink(join('..', '..', 'blobs', name), path);
  return path;
}

test("a file of the hub's cache is compared with the name of its blob by 'require', and not by 'auto'", async () => {
  const path = await cached(file);
  expect((await ways.ParallelLoader!(path)).report.verifiedTensors).toBe(0);
  for (const way of Object.values(ways))
    expect((await way(path, { checksum: 'require' })).report).toMatchObject({ tensors: 4, verifiedTensors: 4 });
  await using files = await fastsafeOpen(path, { checksum: 'require' });
  (await files.getSlice('long', { stop: 1 })).dispose(); // the whole file is proven
});

test("a damaged file of the hub's cache is refused by 'require'", async () => {
  const path = await cached(flipped(5, 'half'), createHash('sha256').update(file).digest('hex'));
  for (const way of Object.values(ways)) {
    await expect(way(path, { checksum: 'require' })).rejects.toMatchObject({
      code: 'CHECKSUM_MISMATCH',
      path,
      message: expect.stringContaining('download it again'),
    });
  }
});

test('what a copier of the user has written is compared, too', async () => {
  const path = await write();
  const right = Object.fromEntries(entries.map(({ name, bytes }) => [name, bytes]));
  let damaged: string | undefined;
  registerCopier('test-digests', () => (metadata, _device) => ({
    async submitIo({ ranges, destination }) {
      for (const { fileOffset, length, destOffset } of ranges) {
        const frame = [...metadata].find(
          ({ dataOffsets: [begin, end] }) =>
            begin <= fileOffset - metadata.dataStart && fileOffset - metadata.dataStart < end,
        )!;
        const begin = fileOffset - metadata.dataStart - frame.dataOffsets[0];
        const bytes = Buffer.from(right[frame.name]!.subarray(begin, begin + length));
        if (frame.name === damaged) bytes[0]! ^= 16;
        await destination.write(destOffset, bytes);
      }
    },
    waitIo: (pending: Promise<void>) => pending,
    async close() {},
  }));
  for (const way of Object.values(ways)) {
    damaged = undefined;
    const { report } = await way(path, { copier: 'test-digests' });
    expect(report).toMatchObject({ verifiedTensors: 4, copier: 'test-digests' });
    damaged = 'short';
    await expect(way(path, { copier: 'test-digests' })).rejects.toMatchObject({
      code: 'CHECKSUM_MISMATCH',
      tensor: 'short',
    });
  }
});

test('the mock, which has no files, has no digests', async () => {
  registerCopier('test-mock', mockCopier({ tensors: { a: new Float32Array(4) } }));
  const loader = new ParallelLoader({ files: 'a.safetensors', copier: 'test-mock' });
  for await (const [, tensor] of loader) tensor.dispose();
  expect(loader.report.verifiedTensors).toBe(0);
  const strict = new ParallelLoader({ files: 'a.safetensors', copier: 'test-mock', checksum: 'require' });
  await expect(strict.iterateWeights().next()).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: 'a' });
  await strict.close();
});

test.each(['yes', true, null, 1])('checksum: %p is refused', (value) => {
  expect(() => new SafeTensorsFileLoader({ checksum: value as never })).toThrow(/checksum: expected/);
});
