import { rm } from 'node:fs/promises';
import { type ConvertibleDType, fastsafeOpen, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { CONVERTIBLE, DTYPE_NAMES } from '../src/base/dtype.js';
import { native } from '../src/native/addon.js';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// getTensor(name, { dtype, device }): of a tensor that is loaded, what a load with these options would give.

const FLOATS = CONVERTIBLE.map((dtype) => entry(`f.${dtype}`, dtype, [33, 5]));
const OTHERS = [entry('int', 'I32', [4]), entry('empty', 'F32', [0, 2]), entry('scales', 'F8_E8M0', [3])];

let folder: string;
let floats: string;
let path: string;
beforeAll(async () => {
  folder = await newFolder();
  floats = await writeModel(folder, FLOATS, 'floats.safetensors');
  path = await writeModel(folder, [...FLOATS, ...OTHERS], 'all.safetensors');
});
afterAll(() => rm(folder, { recursive: true }));
beforeEach(() => useFakeDevices({ copyDelayUs: 100 }));
afterEach(async () => {
  await expectNothingHeld();
  useFakeDevices(null);
});

async function loaded(files: string, device: string, dtype?: ConvertibleDType) {
  await using loader = new SafeTensorsFileLoader({ device, dtype });
  await loader.addFilenames(files);
  return await loader.copyFilesToDevice();
}

describe.each(['cpu', 'cuda:0'])('from %s', (from) => {
  test.each(['cpu', 'cuda:0', 'cuda:1'])('to %s, every conversion is that of a load', async (to) => {
    await using buffer = await loaded(path, from);
    for (const dtype of CONVERTIBLE) {
      await using expected = await loaded(floats, 'cpu', dtype);
      for (const { name } of FLOATS) {
        using tensor = await buffer.getTensor(name, { dtype, device: to });
        using right = await expected.getTensor(name);
        expect(tensor).toMatchObject({ name, dtype, shape: [33, 5] });
        expect(tensor.device.toString()).toBe(to);
        expect(Buffer.compare(await tensor.toHost(), await right.toHost())).toBe(0);
      }
    }
    for (const { name, dtype, bytes } of OTHERS.slice(0, 2)) {
      using tensor = await buffer.getTensor(name, { dtype: 'BF16', device: to });
      expect(tensor.dtype).toBe(name === 'empty' ? 'BF16' : dtype);
      expect(tensor.device.toString()).toBe(to);
      expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
    }
  });

  test('what is so already is not copied', async () => {
    await using buffer = await loaded(path, from);
    using plain = await buffer.getTensor('f.F32');
    using same = await buffer.getTensor('f.F32', { dtype: 'F32', device: from });
    using other = await buffer.getTensor('int', { dtype: 'F16' });
    expect(same.pointer).toBe(plain.pointer);
    expect(other.dtype).toBe('I32');
  });

  test('the other ways to a tensor of a buffer take the same', async () => {
    await using buffer = await loaded(path, from);
    await using expected = await loaded(floats, 'cpu', 'F16');
    const options = { dtype: 'F16', device: 'cpu' } as const;
    using right = await expected.getTensor('f.F32');
    for (const get of [
      () => buffer.getSharded('f.F32', 0, options),
      () => buffer.pushTensor('f.F32', 0, options),
      async () => (await buffer.asDict({ 'f.F32': -1 }, options)).get('f.F32'),
    ]) {
      using tensor = (await get())!;
      expect(tensor).toMatchObject({ dtype: 'F16', shape: [33, 5] });
      expect(tensor.device.toString()).toBe('cpu');
      expect(Buffer.compare(await tensor.toHost(), await right.toHost())).toBe(0);
    }
    using twice = await buffer.getMultiCols(['f.F32', 'f.F32'], 0, options);
    expect(twice).toMatchObject({ dtype: 'F16', shape: [66, 5] });
    expect(twice.device.toString()).toBe('cpu');
    const bytes = await right.toHost();
    expect(Buffer.compare(await twice.toHost(), Buffer.concat([bytes, bytes]))).toBe(0);
    const wrong = { dtpye: 'F16' } as never;
    for (const get of [
      () => buffer.getSharded('f.F32', 0, wrong),
      () => buffer.pushTensor('f.F32', 0, wrong),
      () => buffer.asDict({}, wrong),
      () => buffer.getMultiCols(['f.F32'], 0, wrong),
    ])
      await expect(get()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('fastsafeOpen, too', async () => {
    await using opened = await fastsafeOpen(path, { device: from });
    await using expected = await loaded(floats, 'cpu', 'F16');
    using tensor = await opened.getTensor('f.F32', { dtype: 'F16', device: 'cpu' });
    using right = await expected.getTensor('f.F32');
    expect(tensor.device.toString()).toBe('cpu');
    expect(Buffer.compare(await tensor.toHost(), await right.toHost())).toBe(0);
    await expect(opened.getTensor('f.F32', { dtype: 'I8' as never })).rejects.toMatchObject({
      code: 'UNSUPPORTED_DTYPE',
    });
  });
});

test('what cannot be is a typed error', async () => {
  await using buffer = await loaded(path, 'cpu');
  const F16 = { dtype: 'F16' } as const;
  await expect(buffer.getTensor('scales', F16)).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'scales' });
  for (const [options, code] of [
    [{ dtype: 'I8' }, 'UNSUPPORTED_DTYPE'],
    [{ dtype: 'float16' }, 'INVALID_ARGUMENT'],
    [{ device: 'tpu' }, 'INVALID_ARGUMENT'],
    [{ dtpye: 'F16' }, 'INVALID_ARGUMENT'],
    ['F16', 'INVALID_ARGUMENT'],
    [null, 'INVALID_ARGUMENT'],
  ] as const) {
    await expect(buffer.getTensor('f.F32', options as object)).rejects.toMatchObject({ code });
  }
  useFakeDevices({ memoryLimit: 1 });
  const refused = buffer.getTensor('f.F32', { device: 'cuda:0' });
  await expect(refused).rejects.toMatchObject({ code: 'OUT_OF_DEVICE_MEMORY' });
});

test('closing the buffer while a copy is made gives nothing', async () => {
  const buffer = await loaded(path, 'cuda:0');
  const making = buffer.getTensor('f.F32', { device: 'cpu' });
  const refused = expect(making).rejects.toMatchObject({ code: 'CLOSED' });
  await buffer.close();
  await refused;
});

test('the core checks what it is given', async () => {
  await using buffer = await loaded(path, 'cpu');
  using tensor = await buffer.getTensor('f.F32');
  const { allocation } = tensor.placement;
  const { handle } = allocation!;
  const [f32, f16] = [DTYPE_NAMES.indexOf('F32'), DTYPE_NAMES.indexOf('F16')];
  const far = 2 ** 40;
  for (const [offset, count, from, to, code] of [
    [0, far, f32, f16, 'INVALID_ARGUMENT'],
    [far, 1, f32, f16, 'INVALID_ARGUMENT'],
    [0, 1, f32, 99, 'UNSUPPORTED_DTYPE'],
    [0, 1, 99, f16, 'UNSUPPORTED_DTYPE'],
    [0, 1, f32, f32, 'UNSUPPORTED_DTYPE'],
  ] as const) {
    await expect(native().convertFloats(handle, offset, count, from, to)).rejects.toMatchObject({ code });
  }
  // And for TensorFlow.js.
  for (const [offset, count, from, code] of [
    [0, far, f16, 'INVALID_ARGUMENT'],
    [far, 1, f16, 'INVALID_ARGUMENT'],
    [0, 1, 99, 'UNSUPPORTED_DTYPE'],
  ] as const) {
    const converting = native().convertElements(handle, offset, count, { from, to: 'float32' });
    await expect(converting).rejects.toMatchObject({ code });
  }
});
