import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AutoLoader,
  type CopierFactory,
  type Destination,
  type DeviceTensor,
  FastSafetensorsError,
  fastsafeOpen,
  type LoaderOptions,
  loadFile,
  ParallelLoader,
  ParallelThreeFSLoader,
  registerCopier,
  SafeTensorsFileLoader,
  saveFile,
} from 'fastsafetensors-node';
import { fakeReader, mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import { folder } from './support/fake-device-hooks.js';
import { layer, layeredModel } from './support/layered-model.js';
import { type Entry, entry, writeModel } from './support/model-files.js';
import { refused } from './support/refused.js';

// One loader, several devices: `device` as a map or a function, `devices` with `split`.

const KIB = 1024;
registerCopier('devices-mock', mockCopier());
registerCopier('devices-direct', fakeReader({ alignment: 4096, fillsHost: 0, chunk: 16 * KIB }));

type Where = (name: string) => string;
const halves: Where = (name) => (layer(name) >= 6 || /norm|head/.test(name) ? 'cuda:1' : 'cuda:0');
const RULES: Record<string, { options: LoaderOptions; where?: Where }> = {
  'a map by pattern': {
    options: { device: { 'model.layers.1*': 'gpu:1', '*.norm.weight': 'cpu', '*': 'cuda' } },
    where: (name) => (/layers\.1/.test(name) ? 'cuda:1' : name.endsWith('.norm.weight') ? 'cpu' : 'cuda:0'),
  },
  'a function': { options: { device: (name) => halves(name) }, where: halves },
  'a function that alternates': {
    options: { device: (_, { dataOffsets: [begin] }) => `cuda:${begin % 2}` },
  },
  "devices, split: 'layers'": { options: { devices: ['cuda:0', 'cuda:1', 'cuda:2'] } },
  "devices, split: 'bytes'": { options: { devices: ['cuda:0', 'cuda:1'], split: 'bytes' } },
  'the host and a GPU': { options: { devices: ['cpu', 'cuda:0'] } },
  'one of several': { options: { devices: ['cuda:3'] }, where: () => 'cuda:3' },
};
const WAYS: Record<string, LoaderOptions> = {
  nogds: {},
  'through slots': { staging: 'always' },
  'past the page cache': { odirect: true },
  'blocks of 4096': { copier: 'devices-direct' },
  'a copier of the user': { copier: 'devices-mock' },
};

describe.each(Object.entries(RULES))('%s', (_, { options, where }) => {
  test.each(Object.entries(WAYS))('every loader gives every byte, on its device, by %s', async (_, way) => {
    const { files, entries } = await layeredModel(folder);
    const given = { ...options, ...way };
    const seen = new Map<string, string>();
    const check = async (name: string, tensor: DeviceTensor): Promise<void> => {
      const expected = entries.find((each) => each.name === name)!;
      expect([tensor.name, tensor.dtype, tensor.shape]).toEqual([name, expected.dtype, expected.shape]);
      expect(Buffer.compare(await tensor.toHost(), expected.bytes)).toBe(0);
      if (where) expect(tensor.device.toString()).toBe(where(name));
      expect(tensor.device.toString()).toBe(seen.get(name) ?? tensor.device.toString());
      seen.set(name, tensor.device.toString());
      tensor.dispose();
    };
    for (const order of ['file', 'ready'] as const) {
      await using loader = new ParallelLoader({ files, order, maxBatchBytes: 30 * KIB, ...given });
      const names: string[] = [];
      for await (const [name, tensor] of loader.iterateWeights()) {
        names.push(name);
        await check(name, tensor);
      }
      const inFiles = entries.map(({ name }) => name);
      expect(order === 'file' ? names : [...names].sort()).toEqual(order === 'file' ? inFiles : [...inFiles].sort());
    }
    await using single = new SafeTensorsFileLoader(given);
    await single.addFilenames(files[0]!);
    await single.addFilenames(files[1]!);
    for (const early of [false, true]) {
      await using buffer = await single.copyFilesToDevice({ early });
      for (const name of buffer.keys()) await check(name, await buffer.getTensor(name));
    }
    await using opened = await fastsafeOpen(files, given);
    for (const name of opened.keys().reverse()) await check(name, await opened.getTensor(name));
    for (const [name, tensor] of await opened.getTensors(opened.keys())) await check(name, tensor);
    const big = 'model.layers.11.mlp.weight';
    using slice = await opened.getSlice(big, { start: 1, step: 2 }, { start: 500 });
    expect(slice.device.toString()).toBe(seen.get(big));
    for (const [name, tensor] of Object.entries(await loadFile(files, given))) await check(name, tensor);
  });
});

test('the figures of each device, of what a load did and of what it will take', async () => {
  const { files, entries } = await layeredModel(folder);
  const of = (device: string) => entries.filter(({ name }) => halves(name) === device);
  const bytes = (these: Entry[]) => these.reduce((sum, each) => sum + each.bytes.byteLength, 0);
  await using loader = new SafeTensorsFileLoader({ device: (name) => halves(name), staging: 'always' });
  await loader.addFilenames(files);
  const { devices, ...all } = loader.estimate();
  expect(Object.keys(devices!)).toEqual(['cuda:0', 'cuda:1']);
  expect(devices!['cuda:1']).toMatchObject({ tensors: of('cuda:1').length, stagingBytes: all.stagingBytes });
  expect(devices!['cuda:0']!.deviceBytes + devices!['cuda:1']!.deviceBytes).toBe(all.deviceBytes);
  expect(all.tensors).toBe(entries.length);
  await using buffer = await loader.copyFilesToDevice();
  expect(loader.report).toMatchObject({ device: 'cuda:0, cuda:1', copier: 'nogds', tensors: entries.length, files: 2 });
  expect(loader.report.bytes).toBe(bytes(entries));
  for (const device of ['cuda:0', 'cuda:1']) {
    const wanted = bytes(of(device));
    const figures = { tensors: of(device).length, bytes: wanted, mappedBytes: 0, readBytes: wanted };
    expect(loader.report.devices[device]).toEqual(figures);
  }
  await buffer.close();

  await using one = new SafeTensorsFileLoader({ device: 'cuda:0', staging: 'always' });
  await one.addFilenames(files);
  expect(one.estimate().stagingBytes).toBe(all.stagingBytes); // one reader with its slots serves all GPUs
  await using whole = await one.copyFilesToDevice();
  expect(one.report.devices).toEqual({ 'cuda:0': expect.objectContaining({ bytes: bytes(entries) }) });
  await whole.close();
});

test('no byte is read for two devices, however their tensors alternate in a file', async () => {
  const entries = Array.from({ length: 200 }, (_, i) => entry(`t${i}`, 'U8', [1000 + i]));
  const files = await writeModel(folder, entries);
  await using loader = new ParallelLoader({ files, device: (name) => `cuda:${Number(name.slice(1)) % 3}` });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  expect(loader.report.readBytes).toBe(loader.report.bytes);
});

test('a function is asked once for each tensor, in the order of files and offsets, after the filter', async () => {
  const { files, entries } = await layeredModel(folder);
  for (const way of ['parallel', 'files', 'open'] as const) {
    const asked: string[] = [];
    const device: LoaderOptions['device'] = (name, frame) => {
      expect(frame.name).toBe(name);
      asked.push(name);
      return 'cuda:1';
    };
    const options: LoaderOptions = { device, filter: (name) => name !== 'lm_head.weight' };
    if (way === 'parallel') {
      await using loader = new ParallelLoader({ files, ...options });
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    } else if (way === 'files') {
      await using loader = new SafeTensorsFileLoader(options);
      for (const file of files) await loader.addFilenames(file);
      await using buffer = await loader.copyFilesToDevice();
      expect(buffer.keys()).toHaveLength(entries.length - 1);
    } else {
      await using opened = await fastsafeOpen(files, options);
      for (const tensor of (await opened.getTensors(opened.keys())).values()) tensor.dispose();
    }
    expect(asked).toEqual(entries.map(({ name }) => name).filter((name) => name !== 'lm_head.weight'));
  }
});

test('what is no device, or says nothing of a tensor, is refused and named', async () => {
  const { files } = await layeredModel(folder);
  const wrong: [LoaderOptions, RegExp][] = [
    [{ device: {} }, /at least one pattern/],
    [{ device: { '*': 'cuda:x' } }, /device\["\*"\]: expected 'cpu'.*"cuda:x"/],
    [{ device: { '*': ['cuda:0'] } as never }, /device\["\*"\].*an array/],
    [{ device: 7 as never }, /device: expected/],
    [{ device: null as never }, /device: expected/],
    [{ devices: [] }, /devices: expected an array of devices/],
    [{ devices: 'cuda:0' as never }, /devices: expected an array/],
    [{ devices: ['cuda:0', 'gpu'] }, /cuda:0 is there twice/],
    [{ devices: ['cuda:0', 'tpu'] }, /devices\[1\].*"tpu"/],
    [{ devices: ['cuda:0'], device: 'cuda:0' }, /device and devices/],
    [{ split: 'layers' }, /split: 'layers' needs devices/],
    [{ devices: ['cuda:0'], split: 'even' as never }, /split: expected 'layers' or 'bytes'/],
    [{ device: 'cuda:0', Devices: [] } as never, /did you mean "devices"/],
  ];
  for (const [options, says] of wrong) {
    expect((await refused(() => new ParallelLoader({ files, ...options }))).message).toMatch(says);
    expect((await refused(() => new SafeTensorsFileLoader(options))).message).toMatch(says);
    await refused(() => fastsafeOpen(files, options));
    await refused(() => loadFile(files, options));
  }
  const late: [LoaderOptions['device'], RegExp][] = [
    [{ 'model.*': 'cuda:0' }, /tensor "lm_head.weight" fits none of "model.\*"; add/],
    [() => 'cuda:-1', /device of "model.embed_tokens.weight": expected/],
    [() => undefined as never, /device of "model.embed_tokens.weight"/],
    [(async () => 'cpu') as never, /found a promise/],
    [() => ['cpu', 'cuda:0'] as never, /found an array; a tensor is loaded to one device; getTensor/],
  ];
  for (const [device, says] of late) {
    await expect(loadFile(files, { device })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: says });
    await expect(fastsafeOpen(files, { device })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: says });
    await using loader = new SafeTensorsFileLoader({ device });
    await expect(loader.addFilenames(files)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: says });
    expect(() => loader.keys()).toThrow(/no files were added/);
  }
  const own = new Error('mine');
  const throwing = () => {
    throw own;
  };
  await expect(loadFile(files, { device: throwing })).rejects.toBe(own);
});

test("a copier of the user's is made for each device", async () => {
  const { files, entries } = await layeredModel(folder);
  const made: string[] = [];
  const mock = mockCopier();
  const factory: CopierFactory = (device, options) => {
    made.push(String(device));
    return mock(device, options);
  };
  registerCopier('devices-own', factory);
  await using loader = new ParallelLoader({ files, copier: 'devices-own', devices: ['cpu', 'cuda:0', 'cuda:1'] });
  let tensors = 0;
  for await (const [, tensor] of loader.iterateWeights()) {
    ++tensors;
    tensor.dispose();
  }
  expect(tensors).toBe(entries.length);
  expect(made.sort()).toEqual(['cpu', 'cuda:0', 'cuda:1']);
  expect(Object.keys(loader.report.devices)).toEqual(['cpu', 'cuda:0', 'cuda:1']);
});

test("the user's own reader of '3fs' reads for every device", async () => {
  const { files, entries } = await layeredModel(folder);
  const reader = {
    async readChunked(path: string, destination: Destination, offset: number, length: number): Promise<number> {
      await destination.write(0, (await readFile(path)).subarray(offset, offset + length));
      return length;
    },
  };
  await using loader = new ParallelThreeFSLoader({ files, reader, devices: ['cuda:0', 'cuda:1'] });
  for await (const [name, tensor] of loader.iterateWeights()) {
    expect(Buffer.compare(await tensor.toHost(), entries.find((each) => each.name === name)!.bytes)).toBe(0);
    tensor.dispose();
  }
});

test('tensors are compared with their digests on every device', async () => {
  const { files, entries } = await layeredModel(folder);
  const path = join(folder, 'digests.safetensors');
  const tensors = entries.map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, data: bytes }));
  await saveFile(tensors, path, { checksum: true });
  for (const copier of ['nogds', 'devices-mock']) {
    const options = { files: path, copier, checksum: 'require', device: (name: string) => halves(name) } as const;
    await using loader = new ParallelLoader(options);
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    expect(loader.report.verifiedTensors).toBe(entries.length);
  }
  const file = await readFile(path);
  file[file.length - 1]! ^= 1;
  await writeFile(path, file);
  const { name: last } = entries.at(-1)!;
  for (const copier of ['nogds', 'devices-mock']) {
    const loading = loadFile(path, { copier, devices: ['cuda:0', 'cpu', 'cuda:1'] });
    await expect(loading).rejects.toMatchObject({ code: 'CHECKSUM_MISMATCH', tensor: last });
  }
  await expect(loadFile(files, { checksum: 'require', devices: ['cpu', 'cuda:0'] })).rejects.toMatchObject({
    code: 'CHECKSUM_MISMATCH',
  });
});

test('AutoLoader takes the same options, and says so', async () => {
  const { files, entries } = await layeredModel(folder);
  const said: string[] = [];
  const logger = { debug() {}, info: (text: string) => void said.push(text), warn() {} };
  for (const options of [{ devices: ['cuda:0', 'cuda:1'] }, { device: { '*': 'cuda:1' } }]) {
    let tensors = 0;
    for await (const [, tensor] of new AutoLoader({ files, logger, ...options })) {
      ++tensors;
      tensor.dispose();
    }
    expect(tensors).toBe(entries.length);
  }
  expect(said.join()).toMatch(/device=cuda:0\+cuda:1.*device=by name/);
});

test('buffers join parts of several devices, and copy a tensor to another one', async () => {
  const { files, entries } = await layeredModel(folder);
  const names = ['model.layers.0.mlp.weight', 'model.layers.11.mlp.weight', 'model.layers.1.mlp.weight'];
  const bytes = names.map((name) => entries.find((each) => each.name === name)!.bytes);
  for (const pg of [undefined, { rank: 0, size: 2 }]) {
    await using loader = new SafeTensorsFileLoader({ device: (name) => halves(name), pg });
    await loader.addFilenames(files);
    await using buffer = await loader.copyFilesToDevice();
    if (pg) {
      const dims = Object.fromEntries(names.map((name) => [name, 0]));
      const seen: string[] = [];
      for await (const [name, tensor] of buffer.shardedPlan({ '*.mlp.weight': 0 })) {
        seen.push(name);
        expect(String(tensor.device)).toBe(halves(name));
        const whole = entries.find((each) => each.name === name)!;
        const rows = Math.ceil(whole.shape[0]! / 2);
        expect(Buffer.compare(await tensor.toHost(), whole.bytes.subarray(0, rows * 2000))).toBe(0);
        tensor.dispose();
      }
      expect(seen).toHaveLength(12);
      for (const [name, tensor] of await buffer.asDict(dims)) {
        expect(String(tensor.device)).toBe(halves(name));
        tensor.dispose();
      }
      continue;
    }
    using joined = await buffer.getMultiCols(names, 0);
    expect(String(joined.device)).toBe('cuda:0');
    expect(Buffer.compare(await joined.toHost(), Buffer.concat(bytes))).toBe(0);
    using moved = await buffer.getTensor(names[0]!, { device: 'cuda:1' });
    expect(String(moved.device)).toBe('cuda:1');
    expect(Buffer.compare(await moved.toHost(), bytes[0]!)).toBe(0);
  }
});

describe('an end in the middle leaves nothing, on any device', () => {
  const options: LoaderOptions = { devices: ['cuda:0', 'cuda:1', 'cpu'] };
  const first = async (loader: ParallelLoader): Promise<AsyncGenerator<[string, DeviceTensor], void, void>> => {
    const items = loader.iterateWeights();
    (await items.next()).value![1].dispose();
    return items;
  };

  test.each(['devices-mock', 'nogds', 'devices-direct'])('break, close() and an abort, by %s', async (copier) => {
    const { files } = await layeredModel(folder);
    useFakeDevices({ copyDelayUs: 2000 });
    await using broken = new ParallelLoader({ files, copier, ...options });
    for await (const [, tensor] of broken.iterateWeights()) {
      tensor.dispose();
      break;
    }
    const closed = new ParallelLoader({ files, copier, ...options });
    const items = await first(closed);
    const next = items.next();
    await closed.close();
    for (const ended of await Promise.allSettled([next, items.next()])) {
      if (ended.status === 'fulfilled') ended.value.value?.[1].dispose();
      else expect(ended.reason).toMatchObject({ code: 'CLOSED' });
    }
    const controller = new AbortController();
    const reason = new Error('enough');
    await using aborted = new ParallelLoader({ files, copier, signal: controller.signal, ...options });
    const others = await first(aborted);
    controller.abort(reason);
    await expect(others.next()).rejects.toBe(reason);
    for (const when of [0, 1, 2, 5]) {
      const loader = new SafeTensorsFileLoader({ copier, ...options });
      await loader.addFilenames(files);
      const loading = loader.copyFilesToDevice();
      const settled = loading.then(
        (buffer) => buffer.close(),
        (error) => expect(error).toMatchObject({ code: 'CLOSED' }),
      );
      await new Promise((resolve) => setTimeout(resolve, when));
      await loader.close();
      await settled;
    }
  });

  test("an error of one device's copy ends all", async () => {
    const { files } = await layeredModel(folder);
    for (const failCopy of [1, 2, 5]) {
      useFakeDevices({ copyDelayUs: 500, failCopy });
      await using loader = new ParallelLoader({ files, bounceBufferSize: 4096, devices: ['cpu', 'cuda:0', 'cuda:1'] });
      const all = async (): Promise<void> => {
        for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
      };
      await expect(all()).rejects.toMatchObject({ code: 'CUDA_ERROR', path: expect.stringContaining('safetensors') });
    }
  });

  test('an error of the store ends all, and so does one of a copier of the user', async () => {
    const { files } = await layeredModel(folder);
    registerCopier('devices-failing', fakeReader({ failAt: 7, chunk: 4096, fillsHost: 0 }));
    registerCopier('devices-mock-failing', mockCopier({ failAt: 'model.layers.9.mlp.weight' }));
    for (const copier of ['devices-failing', 'devices-mock-failing']) {
      await expect(loadFile(files, { copier, devices: ['cuda:0', 'cuda:1'] })).rejects.toMatchObject({
        code: 'IO_ERROR',
      });
    }
  });

  test('a device that there is not ends the load before anything is read', async () => {
    useFakeDevices(null);
    const { files } = await layeredModel(folder);
    const error = await loadFile(files, { devices: ['cpu', 'cuda:77'] }).catch((e) => e);
    expect(error).toBeInstanceOf(FastSafetensorsError);
    expect(error).toMatchObject({ code: 'DEVICE_UNAVAILABLE' });
  });
});
