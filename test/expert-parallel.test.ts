import { rm } from 'node:fs/promises';
import {
  expertParallelFilter,
  expertParallelFilterFromEnv,
  loadFile,
  ownedExpertRange,
  ParallelLoader,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// Which experts of a mixture a rank reads, as fastsafetensors 0.5.0 shares them.

// biome-ignore lint/suspicious/noExplicitAny: what is wrong must not be checked by the compiler.
type Any = any;
const WRONG = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
const NAMES = [
  'model.embed.weight',
  ...Array.from({ length: 6 }, (_, i) => `model.layers.3.mlp.experts.${i}.w1.weight`),
  'model.layers.3.mlp.shared_experts.up.weight',
];
const expert = (i: number) => NAMES[1 + i]!;
const OTHERS = [NAMES[0]!, NAMES.at(-1)!];

test.each([
  [256, 8, 0, [0, 32]],
  [256, 8, 7, [224, 256]],
  [6, 4, 0, [0, 2]],
  [6, 4, 1, [2, 4]],
  [6, 4, 2, [4, 5]],
  [6, 4, 3, [5, 6]],
  [2, 4, 1, [1, 2]],
  [2, 4, 3, [2, 2]],
  [0, 1, 0, [0, 0]],
])('of %d experts on %d ranks, rank %d has %j', (numExperts, size, rank, range) => {
  expect(ownedExpertRange(numExperts, size, rank)).toEqual(range);
});

test('the filter keeps own experts, and what is of none', () => {
  const filter = expertParallelFilter({ numExperts: 6, size: 4, rank: 1 });
  expect(NAMES.filter(filter)).toEqual([OTHERS[0], expert(2), expert(3), OTHERS[1]]);
});

test('a pattern of your own finds the number; g and y do no harm', () => {
  for (const pattern of [/ffn\.(\d+)/, /ffn\.(\d+)/g]) {
    const filter = expertParallelFilter({ numExperts: 4, size: 2, rank: 1, pattern });
    expect(['ffn.0', 'ffn.2', 'ffn.3', expert(0)].filter(filter)).toEqual(['ffn.2', 'ffn.3', expert(0)]);
  }
  const wrong = expertParallelFilter({ numExperts: 4, size: 2, rank: 1, pattern: /ffn\.([^.]*)/ });
  for (const name of ['ffn.up', 'ffn..up', 'ffn. ', 'ffn.-1', 'ffn.0x2', 'ffn.1e0']) {
    expect(() => wrong(name)).toThrow(WRONG);
  }
});

test('an expert that numExperts leaves to no rank is refused, by its tensor and number', async () => {
  for (const rank of [0, 1]) {
    const filter = expertParallelFilter({ numExperts: 5, size: 2, rank });
    expect(() => filter(expert(4))).not.toThrow();
    expect(() => filter(expert(5))).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        tensor: expert(5),
        message: expect.stringMatching(/numExperts: expected more than 5.*found 5/),
      }),
    );
  }
  const folder = await newFolder();
  const files = await writeModel(
    folder,
    NAMES.map((name) => entry(name, 'F32', [2])),
  );
  const options = { filter: expertParallelFilter({ numExperts: 4, size: 2, rank: 0 }) };
  await expect(loadFile(files, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', tensor: expert(4) });
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

test('what is wrong is INVALID_ARGUMENT', () => {
  for (const given of [
    undefined,
    null,
    {},
    { numExperts: 4, size: 2 },
    { numExperts: 4, size: 2, rank: 2 },
    { numExperts: 4, size: 0, rank: 0 },
    { numExperts: -1, size: 2, rank: 0 },
    { numExperts: 4, size: 2, rank: 0, pattern: 'x' },
  ]) {
    expect(() => expertParallelFilter(given as Any)).toThrow(WRONG);
  }
  expect(() => (expertParallelFilter as Any)({ numExperts: 4, size: 2, rank: 0 }, 2)).toThrow(WRONG);
});

describe('the environment', () => {
  const before = process.env;
  beforeEach(() => {
    process.env = { ...before };
    for (const name of ['WORLD_SIZE', 'RANK']) delete process.env[name];
  });
  afterEach(() => {
    process.env = before;
  });
  const EP = 'FASTSAFETENSORS_EP_';
  const on = { [`${EP}SLICE`]: '1', [`${EP}NUM_EXPERTS`]: '6' };

  test.each([
    ['nothing', {}],
    ['not turned on', { ...on, [`${EP}SLICE`]: '0', [`${EP}SIZE`]: '4' }],
    ['no experts', { [`${EP}SLICE`]: '1', [`${EP}SIZE`]: '4' }],
    ['one rank', on],
    ['one rank, said', { ...on, [`${EP}SIZE`]: '1', WORLD_SIZE: '1' }],
  ])('%s: every tensor', (_, env) => {
    Object.assign(process.env, env);
    expect(expertParallelFilterFromEnv()).toBeUndefined();
  });

  test.each([
    ['its own variables', { ...on, [`${EP}SIZE`]: '4', [`${EP}RANK`]: '1', WORLD_SIZE: '2', RANK: '0' }],
    ['those of the launcher', { ...on, WORLD_SIZE: '4', RANK: '1' }],
    ['both', { ...on, [`${EP}SIZE`]: '4', RANK: '1' }],
  ])('%s say which rank this is', (_, env) => {
    Object.assign(process.env, env);
    expect(NAMES.filter(expertParallelFilterFromEnv()!)).toEqual([OTHERS[0], expert(2), expert(3), OTHERS[1]]);
  });

  test.each([
    ['no number', { ...on, [`${EP}SIZE`]: 'four' }],
    ['a rank that there is not', { ...on, [`${EP}SIZE`]: '4', [`${EP}RANK`]: '4' }],
  ])('%s is INVALID_ARGUMENT', (_, env) => {
    Object.assign(process.env, env);
    expect(() => expertParallelFilterFromEnv()).toThrow(WRONG);
  });
});

test('loaders read the bytes of own experts only', async () => {
  const folder = await newFolder();
  const files = await writeModel(
    folder,
    NAMES.map((name) => entry(name, 'F32', [16])),
  );
  const filter = expertParallelFilter({ numExperts: 6, size: 4, rank: 3 });
  const parallel = new ParallelLoader({ files, filter });
  const names: string[] = [];
  for await (const [name, tensor] of parallel.iterateWeights()) {
    names.push(name);
    tensor.dispose();
  }
  expect(names.sort()).toEqual([...OTHERS, expert(5)].sort());
  expect(parallel.report.bytes).toBe(3 * 64);
  await parallel.close();
  const loader = new SafeTensorsFileLoader({ filter });
  await loader.addFilenames(files);
  expect(loader.keys().sort()).toEqual(names);
  await loader.close();
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});
