import * as fc from 'fast-check';
import { type Split, splitTensors } from '../src/loaders/split.js';

// How `devices` and `split` share out tensors.

const MB = 1_000_000;
const sum = (sizes: readonly number[]): number => sizes.reduce((total, size) => total + size, 0);

async function groups(tensors: Readonly<Record<string, number>>, count: number, split: Split = 'layers') {
  const sized = Object.entries(tensors).map(([name, bytes]) => ({ name, bytes }));
  const found = await splitTensors(sized, count, split);
  return Array.from({ length: count }, (_, group) =>
    sized.filter((_, i) => found[i] === group).map(({ name }) => name),
  );
}

/** The least size of the largest of so many contiguous groups, by trying all. */
function leastLargest(sizes: readonly number[], count: number): number {
  if (count === 1) return sum(sizes);
  let least = Number.POSITIVE_INFINITY;
  for (let end = 0; end <= sizes.length; ++end)
    least = Math.min(least, Math.max(sum(sizes.slice(0, end)), leastLargest(sizes.slice(end), count - 1)));
  return least;
}

test("'bytes': every tensor once, in the order of files, and the largest part as small as can be", async () => {
  const sizes = fc.array(fc.oneof(fc.nat(50), fc.constant(0)), { maxLength: 9 });
  await fc.assert(
    fc.asyncProperty(sizes, fc.integer({ min: 1, max: 4 }), async (bytes, count) => {
      const tensors = bytes.map((size, i) => ({ name: `model.layers.${i % 3}.w${i}`, bytes: size }));
      const found = Array.from(await splitTensors(tensors, count, 'bytes'));
      expect(found).toHaveLength(bytes.length);
      expect(found).toEqual([...found].sort((a, b) => a - b));
      const used = new Set(found).size;
      expect(used).toBe(Math.min(count, bytes.length)); // no device is idle that could have a tensor
      const parts = Array.from({ length: count }, (_, group) => sum(bytes.filter((_, i) => found[i] === group)));
      expect(sum(parts)).toBe(sum(bytes));
      expect(Math.max(...parts)).toBe(leastLargest(bytes, count));
    }),
    { numRuns: 500 },
  );
});

test("'layers': layers stay whole and follow each other, whatever the order in files", async () => {
  const layers = fc.array(fc.record({ bytes: fc.array(fc.nat(40), { minLength: 1, maxLength: 4 }) }), {
    minLength: 1,
    maxLength: 12,
  });
  const prefix = fc.constantFrom('model.layers', 'h', 'transformer.h', 'blocks', 'encoder.layer', '');
  await fc.assert(
    fc.asyncProperty(layers, prefix, fc.integer({ min: 1, max: 4 }), fc.nat(), async (model, path, count, seed) => {
      const tensors = model.flatMap(({ bytes }, layer) =>
        bytes.map((size, i) => ({ name: `${path && `${path}.`}${layer}.w${i}.weight`, bytes: size, layer })),
      );
      const order = tensors.map((_, i) => ((i + 1) * 7919 + seed) % 10_007); // as alphabetical files have it: no order
      const shuffled = tensors.map((tensor, i) => ({ tensor, key: order[i]! })).sort((a, b) => a.key - b.key);
      const given = shuffled.map(({ tensor }) => tensor);
      const found = await splitTensors(given, count, 'layers');
      const byLayer = model.map((_, layer) => new Set(found.filter((_, i) => given[i]!.layer === layer)));
      for (const group of byLayer) expect(group.size).toBe(1);
      const sequence = byLayer.map((group) => [...group][0]!);
      expect(sequence).toEqual([...sequence].sort((a, b) => a - b));
      const sizes = model.map(({ bytes }) => sum(bytes));
      const parts = Array.from({ length: count }, (_, group) => sum(sizes.filter((_, i) => sequence[i] === group)));
      expect(Math.max(...parts)).toBe(leastLargest(sizes, count));
    }),
    { numRuns: 300 },
  );
});

test('embeddings come first and heads last, wherever files have them', async () => {
  const model: Record<string, number> = { 'lm_head.weight': 100, 'model.embed_tokens.weight': 100 };
  for (const layer of [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9])
    for (const part of ['mlp.up', 'self_attn.q']) model[`model.layers.${layer}.${part}.weight`] = 50;
  model['model.norm.weight'] = 1;
  const [first, second] = (await groups(model, 2)) as [string[], string[]];
  expect(first).toContain('model.embed_tokens.weight');
  expect(first.filter((name) => name.includes('mlp')).map((name) => Number(name.split('.')[2]))).toEqual([
    0, 1, 2, 3, 4, 5,
  ]);
  expect(second).toEqual(
    expect.arrayContaining(['lm_head.weight', 'model.norm.weight', 'model.layers.11.mlp.up.weight']),
  );
});

test('GPT-2, an encoder with a decoder, and a vision tower beside a language model', async () => {
  const gpt2 = await groups(
    { 'wte.weight': 10, 'wpe.weight': 2, 'h.0.a': 10, 'h.1.a': 10, 'h.10.a': 10, 'ln_f.weight': 1 },
    3,
  );
  expect(gpt2).toEqual([
    ['wte.weight', 'wpe.weight'],
    ['h.0.a', 'h.1.a'],
    ['h.10.a', 'ln_f.weight'],
  ]);
  const both = await groups(
    {
      'decoder.layers.0.w': MB,
      'decoder.embed_positions.weight': 9,
      'encoder.embed_positions.weight': 9,
      'encoder.layers.0.w': MB,
      'encoder.layer_norm.weight': 9,
      'decoder.layer_norm.weight': 9,
    },
    2,
  );
  expect(both.map((names) => new Set(names.map((name) => name.split('.')[0])).size)).toEqual([1, 1]);
  const vision = await groups(
    { 'visual.patch_embed.proj': 5, 'visual.blocks.0.w': MB, 'model.embed_tokens.weight': 5, 'model.layers.0.w': MB },
    2,
  );
  expect(vision).toEqual([
    ['visual.patch_embed.proj', 'visual.blocks.0.w'],
    ['model.embed_tokens.weight', 'model.layers.0.w'],
  ]);
});

test("a model whose names have no numbers is split as with 'bytes'", async () => {
  const tensors = { a: 10, b: 10, c: 10, d: 10 };
  expect(await groups(tensors, 2)).toEqual([
    ['a', 'b'],
    ['c', 'd'],
  ]);
  expect(await groups(tensors, 2)).toEqual(await groups(tensors, 2, 'bytes'));
  expect(await groups({}, 3)).toEqual([[], [], []]);
  expect(await groups({ a: 1 }, 3)).toEqual([['a'], [], []]);
});

test('a header of as many stacks as tensors that belong to none is split as others are', async () => {
  const count = 100_000; // ten billion comparisons, if each were looked for in each
  const tensors = Array.from({ length: count }, (_, i) => [
    { name: `a${i}.layers.0.w`, bytes: 1 },
    { name: `a${i}.norm`, bytes: 1 },
  ]).flat();
  const found = await splitTensors(tensors, 2, 'layers');
  for (let i = 0; i < found.length; i += 2) expect(found[i]).toBe(found[i + 1]);
  expect(found.indexOf(1)).toBe(count);
});
