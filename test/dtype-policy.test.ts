import { execFileSync } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type DeviceTensor,
  fastsafeOpen,
  type LoaderOptions,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { DEVICE } from './support/device.js';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// `dtype` with a file of which some floating tensors have no conversion, as models with scales in 8 bits do.

registerCopier('mock', mockCopier());

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, [
    entry('half', 'F16', [3]),
    entry('scale', 'F8_E8M0', [5]),
    entry('packed', 'F4', [4]),
    entry('count', 'I64', [2]),
    entry('wide', 'F64', [2]),
  ]);
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

const LEFT = { half: 'F32', scale: 'F8_E8M0', packed: 'F4', count: 'I64', wide: 'F32' };
const LENGTHS = { half: 12, scale: 5, packed: 2, count: 16, wide: 8 };
const options: LoaderOptions = { dtype: 'F32', dtypePolicy: 'convertible', device: DEVICE };

async function take(tensors: DeviceTensor[]): Promise<[Record<string, string>, Record<string, number>]> {
  const dtypes = Object.fromEntries(tensors.map(({ name, dtype }) => [name, dtype]));
  const lengths = Object.fromEntries(
    await Promise.all(tensors.map(async (tensor) => [tensor.name, (await tensor.toHost()).length] as const)),
  );
  for (const tensor of tensors) tensor.dispose();
  return [dtypes, lengths];
}

const WAYS: Record<string, () => Promise<DeviceTensor[]>> = {
  async ParallelLoader() {
    await using loader = new ParallelLoader({ files: path, ...options });
    const tensors: DeviceTensor[] = [];
    for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
    return tensors;
  },
  async SafeTensorsFileLoader() {
    await using loader = new SafeTensorsFileLoader(options);
    await loader.addFilenames(path);
    await using buffers = await loader.copyFilesToDevice();
    return await Promise.all(buffers.keys().map((name) => buffers.getTensor(name)));
  },
  async 'SafeTensorsFileLoader, dtype of one load'() {
    await using loader = new SafeTensorsFileLoader({ ...options, dtype: undefined });
    await loader.addFilenames(path);
    await using buffers = await loader.copyFilesToDevice({ dtype: 'F32' });
    return await Promise.all(buffers.keys().map((name) => buffers.getTensor(name)));
  },
  async 'fastsafeOpen, tensors'() {
    await using opened = await fastsafeOpen(path, options);
    return await Promise.all(opened.keys().map((name) => opened.getTensor(name)));
  },
  async 'fastsafeOpen, slices'() {
    await using opened = await fastsafeOpen(path, options);
    return await Promise.all(opened.keys().map((name) => opened.getSlice(name, { start: 0 })));
  },
};

test.each(Object.keys(WAYS))('convertible: what has no conversion stays, %s', async (way) => {
  expect(await take(await WAYS[way]!())).toEqual([LEFT, LENGTHS]);
});

test('the bytes of what stays are those of the file', async () => {
  const scale = entry('scale', 'F8_E8M0', [300]);
  path = await writeModel(folder, [entry('half', 'F16', [7]), scale]);
  const tensors = await WAYS.ParallelLoader!();
  const bytes = await tensors.find(({ name }) => name === 'scale')!.toHost();
  expect(Buffer.from(bytes).equals(scale.bytes)).toBe(true);
  for (const tensor of tensors) tensor.dispose();
});

test.each([undefined, 'strict' as const])(
  '%s: it is UNSUPPORTED_DTYPE, and the message names the way out',
  async (dtypePolicy) => {
    const loader = new ParallelLoader({ files: path, ...options, dtypePolicy });
    await expect(loader.iterateWeights().next()).rejects.toMatchObject({
      code: 'UNSUPPORTED_DTYPE',
      tensor: 'scale',
      message: expect.stringContaining("dtypePolicy: 'convertible'"),
    });
    await loader.close();
  },
);

test('convertible: a copier of the user’s own loads a file in which nothing would be converted', async () => {
  path = await writeModel(folder, [entry('scale', 'F8_E8M0', [5])]);
  await using loader = new ParallelLoader({ files: path, ...options, copier: 'mock' });
  for await (const [, tensor] of loader.iterateWeights()) {
    expect(tensor.dtype).toBe('F8_E8M0');
    tensor.dispose();
  }
});

test('on the command line', () => {
  const cli = join(__dirname, '../dist/src/cli/main.js');
  const load = (...args: string[]): string =>
    execFileSync(process.execPath, [cli, 'load', path, '--json', '--dtype', 'F32', ...args], {
      encoding: 'utf8',
      stdio: 'pipe',
    });
  expect(JSON.parse(load('--dtype-policy', 'convertible'))).toMatchObject({ tensors: 5 });
  expect(() => load()).toThrow('UNSUPPORTED_DTYPE');
});
