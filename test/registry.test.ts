import { rm } from 'node:fs/promises';
import {
  type CopierFactory,
  copierAvailability,
  createCopierConstructor,
  Device,
  ParallelLoader,
  registerCopier,
  registeredCopiers,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { newFolder, someEntries, writeModel } from './support/model-files.js';

const BUILTINS = ['3fs', 'gds', 'nogds', 'unified'];

test('built-ins are registered on import; registering one by its name alone does nothing', () => {
  expect(registeredCopiers().slice(0, 4)).toEqual(BUILTINS);
  for (const name of BUILTINS) registerCopier(name);
  registerCopier('nogds');
  expect(registeredCopiers().filter((name) => BUILTINS.includes(name))).toEqual(BUILTINS);
});

test('an unknown name without a factory is UNKNOWN_COPIER, listing those there are', () => {
  for (const register of [() => registerCopier('s3'), () => createCopierConstructor('s3', 'cpu')]) {
    expect(register).toThrow(
      expect.objectContaining({ code: 'UNKNOWN_COPIER', message: expect.stringContaining('nogds') }),
    );
  }
  expect(() => registerCopier('constructor')).toThrow(expect.objectContaining({ code: 'UNKNOWN_COPIER' }));
});

test('names and factories are checked', () => {
  const factory: CopierFactory = () => () => ({ submitIo() {}, waitIo: async () => {}, close: async () => {} });
  for (const [name, given] of [
    ['', factory],
    [1, factory],
    ['auto', factory],
    ['mine', 'a string'],
    ['mine', null],
  ] as [string, CopierFactory][]) {
    expect(() => registerCopier(name, given)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  }
  registerCopier('mine', factory);
  expect(registeredCopiers()).toContain('mine');
  registerCopier('no constructor', (() => ({})) as never);
  expect(() => createCopierConstructor('no constructor', 'cpu')).toThrow(/no constructor.*expected a function/);
});

test('a factory sees the device and the options, a constructor the metadata', async () => {
  const folder = await newFolder();
  const path = await writeModel(folder, someEntries());
  const seen: unknown[] = [];
  registerCopier('seeing', (device, options) => {
    seen.push(device.toString(), options.maxThreads);
    return (metadata, on) => {
      seen.push(metadata.path, on.toString());
      return {
        submitIo: async ({ destination, ranges }) => {
          for (const { destOffset, length } of ranges) await destination.write(destOffset, new Uint8Array(length));
        },
        waitIo: (pending) => pending as Promise<void>,
        close: async () => void seen.push('closed'),
      };
    };
  });
  const loader = new ParallelLoader({ files: path, copier: 'seeing', maxThreads: 3 });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  await loader.close();
  expect(seen).toEqual(['cpu', 3, path, 'cpu', 'closed']);
  await rm(folder, { recursive: true });
});

test.each(['gds', 'unified'])('%s on the cpu: COPIER_UNAVAILABLE with the reason and what to do', async (type) => {
  const availability = await copierAvailability(type);
  expect(availability).toMatchObject({ available: false, reason: expect.any(String), remedy: expect.any(String) });
  const folder = await newFolder();
  const path = await writeModel(folder, someEntries());
  const loader = new SafeTensorsFileLoader({ copier: type });
  await loader.addFilenames(path);
  await expect(loader.copyFilesToDevice()).rejects.toMatchObject({ code: 'COPIER_UNAVAILABLE' });
  await loader.close();
  await rm(folder, { recursive: true });
});

test('availability of what is there, of a device that is not, and of the unknown', async () => {
  const nogds = { copier: 'nogds', backend: 'pread', available: true };
  expect(await copierAvailability('nogds')).toEqual(nogds);
  expect(await copierAvailability('auto', 'cpu')).toEqual(nogds);
  const away = await copierAvailability('nogds', 'cuda:3');
  expect(away).toMatchObject({ available: false, reason: expect.stringContaining('libcuda.so.1') });
  useFakeDevices({});
  expect(await copierAvailability('nogds', 'cuda:3')).toEqual(nogds);
  useFakeDevices(null);
  for (const [type, backend] of [
    ['3fs', 'usrbio'],
    ['gds', 'cufile'],
    ['unified', 'pread'],
    ['fgds', undefined],
  ] as const) {
    expect(await copierAvailability(type)).toMatchObject({ copier: type, available: false });
    expect((await copierAvailability(type)).backend).toBe(backend);
  }
  registerCopier('of one’s own', () => () => ({ submitIo() {}, waitIo: async () => {}, close: async () => {} }));
  expect(await copierAvailability('of one’s own')).toEqual({ copier: 'of one’s own', available: true });
  await expect(copierAvailability('s3')).rejects.toMatchObject({ code: 'UNKNOWN_COPIER' });
  await expect(copierAvailability('nogds', 'tpu')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

test('a device that is not there is DEVICE_UNAVAILABLE and leaves the loader usable for close()', async () => {
  const folder = await newFolder();
  const path = await writeModel(folder, someEntries());
  const loader = new SafeTensorsFileLoader({ device: 'cuda:0' });
  await loader.addFilenames(path);
  await expect(loader.copyFilesToDevice()).rejects.toMatchObject({ code: 'DEVICE_UNAVAILABLE' });
  await loader.close();
  await rm(folder, { recursive: true });
});

test.each([
  ['cpu', 'cpu', null, 'cpu'],
  ['cuda', 'cuda', 0, 'cuda:0'],
  ['cuda:0', 'cuda', 0, 'cuda:0'],
  ['cuda:7', 'cuda', 7, 'cuda:7'],
  ['gpu', 'cuda', 0, 'cuda:0'],
  ['gpu:12', 'cuda', 12, 'cuda:12'],
  ['CPU', 'cpu', null, 'cpu'],
  ['cpu:0', 'cpu', null, 'cpu'],
  ['CUDA:1', 'cuda', 1, 'cuda:1'],
  ['Gpu', 'cuda', 0, 'cuda:0'],
])('Device.parse(%s)', (text, type, index, name) => {
  const device = Device.parse(text);
  expect({ type: device.type, index: device.index, name: device.toString() }).toEqual({ type, index, name });
});

test.each([
  '',
  'cpu:1',
  'cpu:',
  'cpu:00',
  'cuda:',
  'cuda:01',
  'cuda:-1',
  'cuda:1.0',
  'cuda:99999',
  ' cuda',
  'cuda\n',
  'tpu',
  null,
  7,
  {},
])('Device.parse(%j) is INVALID_ARGUMENT', (text) => {
  expect(() => Device.parse(text as string)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
});
