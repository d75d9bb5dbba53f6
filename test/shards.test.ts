import { mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fastsafeOpen, ParallelLoader, SafeTensorsFileLoader, saveFile } from 'fastsafetensors-node';
import { readIndex } from '../src/safetensors/shard-index.js';
import { encodeFile, entry, newFolder, someEntries, writeModel } from './support/model-files.js';
import { expectSame, LOADERS } from './support/read-back.js';

// Folders, lists and index files: which shards there are, and that they and the index say the same.

const INDEX = 'model.safetensors.index.json';
const first = someEntries('first.');
const second = someEntries('second.');

let folder: string;
beforeEach(async () => {
  folder = await newFolder();
  await writeModel(folder, first, 'a.safetensors');
  await writeModel(folder, second, 'b.safetensors');
});
afterEach(() => rm(folder, { recursive: true }));

function weightMap(): Record<string, string> {
  return Object.fromEntries([
    ...first.map(({ name }) => [name, 'a.safetensors']),
    ...second.map(({ name }) => [name, 'b.safetensors']),
  ]);
}
async function writeIndex(content: unknown): Promise<string> {
  const path = join(folder, INDEX);
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

test('a folder without an index is all its files; with one, what the index says', async () => {
  const folders = [folder] as const;
  for (const load of Object.values(LOADERS)) expectSame(await load([...folders], {}), [...first, ...second]);
  await writeModel(folder, someEntries('third.'), 'c.safetensors'); // not in the index
  const index = await writeIndex({ metadata: { total_size: 1 }, weight_map: weightMap() });
  for (const load of Object.values(LOADERS)) {
    expectSame(await load([folder], {}), [...first, ...second]);
    expectSame(await load([index], {}), [...first, ...second]);
  }
});

test('files by rank: mine are loaded, those of ranks that are not there refused', async () => {
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames({ 0: [join(folder, 'a.safetensors'), join(folder, 'b.safetensors')] });
  expect(loader.keys().length).toBe(first.length + second.length);
  await expect(loader.addFilenames({ 1: folder })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(loader.addFilenames({ x: folder } as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(loader.addFilenames([])).rejects.toMatchObject({ code: 'NO_FILES' });
  const without = new SafeTensorsFileLoader();
  await without.addFilenames({}); // this rank has none
  expect(without.keys()).toEqual([]);
  await without.close();
  await loader.close();
});

test.each([
  ['no path', 1, 'INVALID_ARGUMENT'],
  ['null', null, 'INVALID_ARGUMENT'],
  ['an empty path', '', 'INVALID_ARGUMENT'],
  ['a path with NUL', 'a\0b', 'INVALID_ARGUMENT'],
  ['an empty list', [], 'NO_FILES'],
  ['a list with no path', [1, 2], 'INVALID_ARGUMENT'],
  ['an index among files', ['x.safetensors', 'model.json'], 'INVALID_ARGUMENT'],
])('files that are %s are refused', async (_, files, code) => {
  await expect(fastsafeOpen(files as string)).rejects.toMatchObject({ code });
  const stream = async () => new ParallelLoader({ files: files as string }).iterateWeights().next();
  await expect(stream()).rejects.toMatchObject({ code }); // what is no list of texts already by the constructor
});

test('a folder without weights is NO_FILES', async () => {
  const empty = join(folder, 'empty');
  await mkdir(empty);
  await expect(fastsafeOpen(empty)).rejects.toMatchObject({ code: 'NO_FILES', path: empty });
});

test('one key in two shards is DUPLICATE_TENSOR naming both', async () => {
  await writeModel(folder, [entry('first.bias', 'U8', [1])], 'c.safetensors');
  for (const load of Object.values(LOADERS)) {
    await expect(load([folder], {})).rejects.toMatchObject({
      code: 'DUPLICATE_TENSOR',
      tensor: 'first.bias',
      message: expect.stringMatching(/a\.safetensors.*c\.safetensors/),
    });
  }
  await writeIndex({ weight_map: { ...weightMap(), other: 'c.safetensors' } });
  await expect(fastsafeOpen(folder)).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR' });
});

test('the same file twice is DUPLICATE_TENSOR', async () => {
  const path = join(folder, 'a.safetensors');
  await expect(fastsafeOpen([path, path])).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR' });
});

test.each<[string, (map: Record<string, string>) => void, string]>([
  ['a key in the index and in no shard', (map) => Object.assign(map, { ghost: 'a.safetensors' }), 'ghost'],
  ['a key in a shard and not in the index', (map) => delete map['second.bias'], 'second.bias'],
  [
    'a key in another shard than the index says',
    (map) => Object.assign(map, { 'first.bias': 'b.safetensors' }),
    'first.bias',
  ],
])('%s is INVALID_INDEX naming it where the index is strict', async (_, change, tensor) => {
  const map = weightMap();
  change(map);
  const path = await writeIndex({ weight_map: map });
  const refused = { code: 'INVALID_INDEX', path, tensor };
  for (const load of Object.values(LOADERS))
    await expect(load([folder], { index: 'strict' })).rejects.toMatchObject(refused);
  if (tensor === 'ghost') await expect(fastsafeOpen(folder)).rejects.toMatchObject(refused); // in any case
});

describe('the index decides', () => {
  const notesOf = async (): Promise<readonly string[]> => {
    const loader = new ParallelLoader({ files: folder });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
    return loader.report.notes;
  };

  test('a tensor that it does not name is left out, and the report says so', async () => {
    const { 'second.bias': _, ...map } = weightMap();
    await writeIndex({ weight_map: map });
    const expected = [...first, ...second.filter(({ name }) => name !== 'second.bias')];
    for (const load of Object.values(LOADERS)) expectSame(await load([folder], {}), expected);
    expect(await notesOf()).toEqual([expect.stringMatching(/left out .*"second\.bias" of b\.safetensors/)]);

    const opened = await fastsafeOpen(folder);
    await expect(opened.getTensor('second.bias')).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
    await opened.close();
    const loader = new SafeTensorsFileLoader();
    await loader.addFilenames(folder);
    expect(() => loader.getShape('second.bias')).toThrow(expect.objectContaining({ code: 'UNKNOWN_TENSOR' }));
    await loader.close();
  });

  test('a filter is asked for what it names only', async () => {
    await writeIndex({ weight_map: { 'first.bias': 'a.safetensors' } });
    const asked: string[] = [];
    const loader = new ParallelLoader({ files: folder, filter: (name) => asked.push(name) > 0 });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
    expect(asked).toEqual(['first.bias']);
  });

  test('a tensor that it assigns to another shard than has it is taken from there', async () => {
    await writeIndex({ weight_map: { ...weightMap(), 'first.bias': 'b.safetensors' } });
    for (const load of Object.values(LOADERS)) expectSame(await load([folder], {}), [...first, ...second]);
    expect(await notesOf()).toEqual([
      expect.stringMatching(/another shard .*"first\.bias" of a\.safetensors, not b\./),
    ]);
  });

  test('of a tensor that two shards have, the one that it says', async () => {
    const other = entry('first.bias', 'U8', [3]);
    await writeModel(folder, [...second, other], 'b.safetensors');
    for (const [shard, bias] of [
      ['a.safetensors', first.find(({ name }) => name === 'first.bias')!],
      ['b.safetensors', other],
    ] as const) {
      await writeIndex({ weight_map: { ...weightMap(), 'first.bias': shard } });
      const expected = [...first.filter(({ name }) => name !== 'first.bias'), ...second, bias];
      for (const load of Object.values(LOADERS)) {
        expectSame(await load([folder], {}), expected);
        await expect(load([folder], { index: 'strict' })).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR' });
      }
      expect(await notesOf()).toEqual([expect.stringMatching(/in another shard, too: "first\.bias" of [ab]\./)]);
    }
  });

  test('of a tensor that two other shards have, neither', async () => {
    for (const name of ['c', 'd']) await writeModel(folder, [entry('twice', 'U8', [3]), entry(name, 'U8', [1])], name);
    await writeIndex({ weight_map: { ...weightMap(), twice: 'a.safetensors', c: 'c', d: 'd' } });
    await expect(fastsafeOpen(folder)).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR', tensor: 'twice' });
  });

  test('of a shard without any tensor that it names, nothing', async () => {
    await writeIndex({ weight_map: { 'second.bias': 'a.safetensors', 'second.weight': 'b.safetensors' } });
    const expected = second.filter(({ name }) => /bias|weight/.test(name));
    for (const load of Object.values(LOADERS)) expectSame(await load([folder], {}), expected);
  });
});

test('a shard that is not there is MISSING_SHARD', async () => {
  await rm(join(folder, 'b.safetensors'));
  await writeIndex({ weight_map: weightMap() });
  await expect(fastsafeOpen(folder)).rejects.toMatchObject({
    code: 'MISSING_SHARD',
    path: join(folder, 'b.safetensors'),
  });
});

test.each([
  ['no JSON', '{"weight_map":', 'INVALID_INDEX'],
  ['nothing', '', 'INVALID_INDEX'],
  ['an array', '[]', 'INVALID_INDEX'],
  ['null', 'null', 'INVALID_INDEX'],
  ['without weight_map', '{"metadata":{}}', 'INVALID_INDEX'],
  ['with an array as weight_map', '{"weight_map":[]}', 'INVALID_INDEX'],
  ['with a number as file', '{"weight_map":{"first.bias":1}}', 'INVALID_INDEX'],
  ['with null as file', '{"weight_map":{"first.bias":null}}', 'INVALID_INDEX'],
  ['with an empty weight_map', '{"weight_map":{}}', 'NO_FILES'],
  ['with bytes behind it', '{"weight_map":{"first.bias":"a.safetensors"}} x', 'INVALID_INDEX'],
  ['too deep', `{"weight_map":{"a":"a.safetensors"},"x":${'['.repeat(1000)}`, 'INVALID_INDEX'],
  [
    'with one weight_map after another',
    '{"weight_map":{},"weight_map":{"first.bias":"a.safetensors"}}',
    'INVALID_INDEX',
  ],
])('an index that is %s is %s', async (_, text, code) => {
  const path = await writeIndex(text);
  await expect(fastsafeOpen(folder)).rejects.toMatchObject({ code, path });
});

test('a wrong total_size is no reason to refuse', async () => {
  for (const total_size of [0, -1, 1e30, 'much', null]) {
    await writeIndex({ metadata: { total_size }, weight_map: weightMap() });
    await (await fastsafeOpen(folder)).close();
  }
});

test.each([
  '/etc/passwd',
  '../a.safetensors',
  'x/../../a.safetensors',
  '..',
  '%2e%2e/a.safetensors',
  '%2E%2E%2Fa.safetensors',
  '..\\a.safetensors',
  'a\\b.safetensors',
  '%5c..%5ca.safetensors',
  'a.safetensors\0',
  '%00',
  '',
  '.',
  'http://host/a.safetensors',
  'file:a.safetensors',
  'C:a.safetensors',
  'C:/a.safetensors',
  '\\\\host\\share\\a.safetensors',
  '//host/share/a.safetensors',
  '%2fetc/passwd',
])('the shard name %j is UNSAFE_SHARD_PATH', async (name) => {
  const path = await writeIndex({ weight_map: { ...weightMap(), 'first.bias': name } });
  for (const followLinks of [true, false])
    await expect(fastsafeOpen(folder, { followLinks })).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH', path });
});

test('without followLinks a link that leaves the folder is UNSAFE_SHARD_PATH, one that stays is fine', async () => {
  const linked = entry('linked', 'U8', [4]);
  const outside = await newFolder();
  await writeModel(outside, [linked], 'out.safetensors');
  await symlink(join(outside, 'out.safetensors'), join(folder, 'link.safetensors'));
  await symlink(outside, join(folder, 'linked-folder'));
  const all = [...first, ...second, linked];
  for (const name of ['link.safetensors', 'linked-folder/out.safetensors']) {
    await writeIndex({ weight_map: { ...weightMap(), linked: name } });
    for (const load of Object.values(LOADERS)) {
      const refused = load([folder], { followLinks: false });
      await expect(refused).rejects.toMatchObject({ code: 'UNSAFE_SHARD_PATH' });
      expectSame(await load([folder], {}), all);
    }
  }
  await rm(join(folder, 'link.safetensors'));

  await mkdir(join(folder, 'below'));
  await writeFile(join(folder, 'below', '100%.safetensors'), encodeFile([linked]));
  await symlink(join('below', '100%.safetensors'), join(folder, 'link.safetensors'));
  for (const name of ['link.safetensors', 'below/100%.safetensors']) {
    await writeIndex({ weight_map: { ...weightMap(), linked: name } });
    for (const followLinks of [true, false]) expectSame(await LOADERS.fastsafeOpen!([folder], { followLinks }), all);
  }
  await rm(outside, { recursive: true });
});

test('names like __proto__ in an index reach no prototype', async () => {
  const odd = ['__proto__', 'constructor', 'toString', ''].map((name) => entry(name, 'U8', [3]));
  await writeModel(folder, odd, 'odd.safetensors');
  const map = JSON.stringify(weightMap()).slice(0, -1);
  const text = `{"weight_map":${map}${odd.map(({ name }) => `,${JSON.stringify(name)}:"odd.safetensors"`).join('')}}}`;
  await writeIndex(text);
  for (const load of Object.values(LOADERS)) expectSame(await load([folder], {}), [...first, ...second, ...odd]);
});

test('a tensor that an index names twice is INVALID_INDEX naming it, however it is spelled', async () => {
  const map = JSON.stringify(weightMap()).slice(0, -1);
  for (const again of ['"first.bias":"a.safetensors"', '"first.\\u0062ias":"b.safetensors"']) {
    const path = await writeIndex(`{"weight_map":${map},${again}}}`);
    await expect(fastsafeOpen(folder)).rejects.toMatchObject({
      code: 'INVALID_INDEX',
      path,
      tensor: 'first.bias',
      message: expect.stringContaining('there already'),
    });
  }
});

test('one shard may be spelled in several ways', async () => {
  const map = weightMap();
  for (const [i, { name }] of first.entries())
    map[name] = ['a.safetensors', './a.safetensors', './/a.safetensors'][i % 3]!;
  await writeIndex({ weight_map: map });
  for (const load of Object.values(LOADERS)) expectSame(await load([folder], {}), [...first, ...second]);
});

test('a shard that is there but cannot be reached is IO_ERROR, not missing', async () => {
  await rm(join(folder, 'b.safetensors'));
  await symlink('b.safetensors', join(folder, 'b.safetensors')); // to itself
  await writeIndex({ weight_map: weightMap() });
  await expect(fastsafeOpen(folder)).rejects.toMatchObject({
    code: 'IO_ERROR',
    path: join(folder, 'b.safetensors'),
    message: expect.stringContaining('ELOOP'),
  });
});

test('an index and a header of many names give the event loop its turns', async () => {
  const many = Array.from({ length: 30_000 }, (_, i) => entry(`layers.${i}.weight`, 'U8', [0]));
  const metadata = Object.fromEntries(Array.from({ length: 30_000 }, (_, i) => [`key é ${i}`, `value ${i}`]));
  const large = await newFolder();
  await writeFile(join(large, 'a.safetensors'), encodeFile(many));
  await saveFile([{ name: 'b', dtype: 'U8', shape: [0], data: new Uint8Array(0) }], join(large, 'b.safetensors'), {
    metadata,
  });
  const map = { ...Object.fromEntries(many.map(({ name }) => [name, 'a.safetensors'])), b: 'b.safetensors' };
  await writeFile(join(large, INDEX), JSON.stringify({ weight_map: map }));
  const parse = jest.spyOn(JSON, 'parse');
  let turns = 0;
  let going = true;
  const tick = () => {
    ++turns;
    if (going) setImmediate(tick);
  };
  setImmediate(tick);
  const opened = await fastsafeOpen(large);
  going = false;
  expect(turns).toBeGreaterThan(20);
  expect(parse).not.toHaveBeenCalled();
  parse.mockRestore();
  expect(opened.keys().length).toBe(30_001);
  expect(Object.fromEntries(opened.metadata().get(join(large, 'b.safetensors'))!)).toEqual(metadata);
  await opened.close();
  await rm(large, { recursive: true });
});

test('shards that an index names are looked at a few at a time, and the first that is missing is told', async () => {
  const names = Array.from({ length: 500 }, (_, i) => `s${i}.safetensors`);
  await writeIndex({ weight_map: Object.fromEntries(names.map((name, i) => [`t${i}`, name])) });
  await writeFile(join(folder, names[0]!), '');
  let going = 0;
  let most = 0;
  const call = async <T>(_what: string, _path: string, begin: () => Promise<T>): Promise<T> => {
    most = Math.max(most, ++going);
    return begin().finally(() => --going);
  };
  const index = await readIndex(join(folder, INDEX), { calls: { call } });
  expect(most).toBeLessThanOrEqual(16);
  expect(index.shards).toEqual(names.map((name) => join(folder, name)));
  expect(index.missing).toMatchObject({ code: 'MISSING_SHARD', path: join(folder, names[1]!) });
});
