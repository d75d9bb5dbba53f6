import { rm } from 'node:fs/promises';
import { fastsafeOpen, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { nearest } from '../src/base/nearest.js';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// UNKNOWN_TENSOR says which name may be meant, wherever tensors are asked for by name.

const NAMES = ['model.layers.0.self_attn.q_proj.weight', 'model.layers.0.self_attn.k_proj.weight', 'lm_head.weight'];
let folder: string;
let path: string;
beforeAll(async () => {
  folder = await newFolder();
  path = await writeModel(
    folder,
    NAMES.map((name) => entry(name, 'F32', [2])),
  );
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(expectNothingHeld);

/** The message of an UNKNOWN_TENSOR. */
async function unknown(call: () => unknown, tensor: string): Promise<string> {
  try {
    await call();
  } catch (error) {
    expect(error).toMatchObject({ code: 'UNKNOWN_TENSOR', tensor });
    return (error as Error).message;
  }
  throw new Error('there is such a tensor');
}

test.each([
  ['model.layers.0.self_attn.qproj.weight', NAMES[0]],
  ['layers.0.self_attn.k_proj.weight', NAMES[1]],
  ['lm_haed.weight', NAMES[2]],
  ['LM-head.weight', NAMES[2]],
])('%s may mean %s', async (asked, meant) => {
  await using loader = new SafeTensorsFileLoader();
  await loader.addFilenames(path);
  await using buffer = await loader.copyFilesToDevice();
  await using opened = await fastsafeOpen(path);
  for (const call of [
    () => loader.getShape(asked),
    () => loader.frame(asked),
    () => buffer.getTensor(asked),
    () => buffer.getMultiCols([asked], 0),
    () => opened.frame(asked),
    () => opened.getTensor(asked),
    () => opened.getTensors([NAMES[0]!, asked]),
    () => opened.getSlice(asked),
  ]) {
    const message = await unknown(call, asked);
    expect(message).toContain(`tensor "${asked}"`);
    expect(message).toContain(`did you mean "${meant}"?`);
  }
});

test('where none is near, the message says where names are', async () => {
  await using opened = await fastsafeOpen(path);
  expect(await unknown(() => opened.getTensor('x'), 'x')).toContain('keys() gives the names');
  expect(await unknown(() => opened.getTensor('y'.repeat(2 ** 20)), 'y'.repeat(2 ** 20))).toContain('keys()');
});

test('a tensor that the filter leaves out is not what was misspelled', async () => {
  const filter = (name: string): boolean => name !== NAMES[0];
  await using loader = new SafeTensorsFileLoader({ filter });
  await loader.addFilenames(path);
  await using opened = await fastsafeOpen(path, { filter });
  for (const call of [() => loader.frame(NAMES[0]!), () => opened.getTensor(NAMES[0]!)]) {
    const message = await unknown(call, NAMES[0]!);
    expect(message).toContain('the option filter leaves out');
    expect(message).toContain(`did you mean "${NAMES[1]}"?`);
  }
});

test('a search ends, however many names there are', () => {
  function* endless(): Generator<string, void, void> {
    yield 'the_one.weight';
    for (let i = 0; ; ++i) yield `model.layers.${i}.mlp.down_proj.weight_scale_inv`;
  }
  expect(nearest('theone.wieght', endless())).toBe('the_one.weight');
  expect(nearest('nothing like any', endless())).toBeUndefined();
});
