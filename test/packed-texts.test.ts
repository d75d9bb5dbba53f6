import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { fastsafeOpen, type LoaderOptions, SafeTensorsMetadata } from 'fastsafetensors-node';
import { hashText, PackedTexts, TextMap, TextNumbers } from '../src/base/packed-texts';
import { testFolder } from './support/tensor-files.js';

// Headers of many names and texts: found by tables that the core makes off the event loop, in place of Maps, which hold
// it each time that they grow.

const folder = testFolder();

function write(names: readonly string[], metadata: Record<string, string> = {}, file = 'm.safetensors'): string {
  const tensors = names.map((name) => [name, { dtype: 'U8', shape: [0], data_offsets: [0, 0] }]);
  const header = Buffer.from(JSON.stringify({ __metadata__: metadata, ...Object.fromEntries(tensors) }));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const path = join(folder, file);
  writeFileSync(path, Buffer.concat([length, header]));
  return path;
}

const NAMES: Record<string, (i: number) => string> = {
  'ASCII names': (i) => `model.layers.${i}.mlp.experts.down_proj.weight_scale_inv`,
  'names of several scripts': (i) => `層.${i}.重み.🎲${'é'.repeat(i % 7)}`,
  'one long name among short ones': (i) => (i === 700 ? 'x'.repeat(100_000) : `n${i}`),
  'an empty name': (i) => (i === 0 ? '' : `w${i}`),
};

test.each(Object.entries(NAMES))('%s are found, and no others', async (_, nameOf) => {
  for (const count of [1, 1024, 1025, 5000]) {
    const names = Array.from({ length: count }, (_, i) => nameOf(i));
    const header = await SafeTensorsMetadata.fromFile(write(names));
    expect(header.packed.nameSlots !== undefined).toBe(count > 1024);
    expect(header.keys()).toEqual(names);
    for (const [i, name] of names.entries()) if (header.indexOf(name) !== i) throw new Error(`"${name}" is lost`);
    for (const other of ['absent', 'n', `${names[0]}x`, '\ud800']) expect(header.has(other)).toBe(false);
  }
});

test('no name is put into a table of JavaScript', async () => {
  const path = write(Array.from({ length: 20_000 }, (_, i) => `w${i}`));
  const set = jest.spyOn(Map.prototype, 'set');
  const header = await SafeTensorsMetadata.fromFile(path);
  expect(header.has('w19999')).toBe(true);
  expect(set.mock.calls.length).toBeLessThan(100);
  set.mockRestore();
});

test.each<[string, LoaderOptions, boolean]>([
  ['without an index', {}, false],
  ['by an index', {}, true],
  ['that have to agree with an index', { index: 'strict' }, true],
])('no name of several files is, %s', async (kind, options, indexed) => {
  const own = join(folder, kind);
  mkdirSync(own);
  const weight_map: Record<string, string> = {};
  for (let file = 0; file < 4; ++file) {
    const names = Array.from({ length: 5000 }, (_, i) => `${file}.w${i}`);
    write(names, {}, join(kind, `${file}.safetensors`));
    for (const name of names) weight_map[name] = `${file}.safetensors`;
  }
  if (indexed) writeFileSync(join(own, 'model.safetensors.index.json'), JSON.stringify({ weight_map }));
  const set = jest.spyOn(Map.prototype, 'set');
  const opened = await fastsafeOpen(own, options);
  for (const name of ['0.w0', '1.w4999', '3.w77']) expect(opened.frame(name).name).toBe(name);
  expect(set.mock.calls.length).toBeLessThan(100);
  set.mockRestore();
  for (const name of ['', '4.w0', '0.w5000']) expect(() => opened.frame(name)).toThrow('no opened file has a tensor');
  await opened.close();
});

test('the texts of __metadata__ are a Map, of very many what has its methods', async () => {
  for (const count of [3, 2000, 70_000]) {
    const texts = Object.fromEntries(Array.from({ length: count }, (_, i) => [`k${i}`, `é${i}`]));
    const { metadata } = await SafeTensorsMetadata.fromFile(write(['w'], texts));
    expect(metadata instanceof Map).toBe(count < 65_536);
    expect(Object.prototype.toString.call(metadata)).toBe('[object Map]');
    expect(metadata.size).toBe(count);
    expect(Object.fromEntries(metadata)).toEqual(texts);
    expect([metadata.get('k2'), metadata.get('k'), metadata.has('k0'), metadata.has('é0')]).toEqual([
      'é2',
      undefined,
      true,
      false,
    ]);
    expect([...metadata.keys()].slice(0, 2)).toEqual(['k0', 'k1']);
    expect([...metadata.values()].slice(0, 2)).toEqual(['é0', 'é1']);
    let last: unknown;
    metadata.forEach((value, key, map) => {
      last = [value, key, map === metadata];
    });
    expect(last).toEqual([`é${count - 1}`, `k${count - 1}`, true]);
  }
});

test('the numbers of texts are found, also of those that meet in one place', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.string({ unit: 'binary' }), { maxLength: 300 }), fc.string(), (texts, other) => {
      const numbers = new TextNumbers(texts.length, (number) => texts[number]!);
      for (const [i, text] of texts.entries()) expect(numbers.add(text, i)).toBe(-1);
      for (const [i, text] of texts.entries()) expect([numbers.find(text), numbers.add(text, 1000)]).toEqual([i, i]);
      if (!texts.includes(other)) expect(numbers.find(other)).toBe(-1);
    }),
  );
});

test('texts of any kind come out as they were packed', () => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: 'binary' }), { maxLength: 300 }), (texts) => {
      const bytes = texts.map((text) => Buffer.from(text));
      let end = 0;
      const packed = new PackedTexts(
        Buffer.concat(bytes),
        Uint32Array.from(bytes, ({ length }) => (end += length)),
      );
      expect(Array.from(texts, (_, i) => packed.at(i))).toEqual(texts.map((text) => Buffer.from(text).toString()));
    }),
  );
});

test('a TextMap is a Map', () => {
  const map = new TextMap<number>(100_000);
  for (let i = 0; i < 50_000; ++i) map.set(`n${i}`, i);
  map.set('n1', -1);
  expect(map.size).toBe(50_000);
  expect([map.get('n0'), map.get('n1'), map.get('n49999'), map.get('n'), map.has('n7'), map.has('')]).toEqual([
    0,
    -1,
    49_999,
    undefined,
    true,
    false,
  ]);
  expect(hashText('a', 1)).not.toBe(hashText('b', 1));
});
