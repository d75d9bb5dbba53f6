import { readdirSync, readlinkSync } from 'node:fs';
import { realpath, rm } from 'node:fs/promises';
import { setTimeout } from 'node:timers/promises';
import {
  fastsafeOpen,
  type LoaderOptions,
  nativeMetrics,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
} from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';
import { userCopier } from './support/read-back.js';

// The descriptor that a header was read through is the one that the data is read through, and no descriptor outlives
// its loader.

registerCopier('user', userCopier);

/** So slow that descriptors can be looked at meanwhile. */
const SLOWED: LoaderOptions = { maxBytesPerSecond: 2_000_000, bounceBufferSize: 4096, maxThreads: 2 };
const SHARDS = 12;
const ENTRIES = Array.from({ length: SHARDS }, (_, i) => entry(`t${i}`, 'U8', [40_000]));

let folder: string;
let files: string[];
beforeAll(async () => {
  useFakeDevices({ copyDelayUs: 0 });
  folder = await realpath(await newFolder());
  files = await Promise.all(ENTRIES.map((tensor, i) => writeModel(folder, [tensor], `${i}.safetensors`)));
});
afterAll(async () => {
  useFakeDevices(null);
  await rm(folder, { recursive: true });
});
afterEach(() => expectNothingHeld());

/** This process's descriptors of the files, by path. */
function descriptors(): Map<string, number[]> {
  const found = new Map<string, number[]>();
  for (const fd of readdirSync('/proc/self/fd')) {
    let path: string;
    try {
      path = readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      continue; // closed meanwhile
    }
    if (files.includes(path)) found.set(path, [...(found.get(path) ?? []), Number(fd)]);
  }
  return found;
}

describe.each<[string, LoaderOptions]>([
  ['into place', {}],
  ['through slots', { staging: 'always' }],
  ['onto a device', { device: 'cuda:0', copier: 'nogds' }],
])('%s', (_, options) => {
  test('a file is read through the descriptor that its header was read through, and no other', async () => {
    const loader = new SafeTensorsFileLoader({ ...SLOWED, ...options });
    await loader.addFilenames(files);
    const kept = descriptors();
    expect([...kept.keys()].sort()).toEqual([...files].sort());
    expect([...kept.values()].filter(({ length }) => length !== 1)).toEqual([]);
    expect(nativeMetrics().openFiles).toBe(SHARDS);
    let done = false;
    const loading = loader.copyFilesToDevice().finally(() => {
      done = true;
    });
    let looks = 0;
    for (; !done; ++looks) {
      for (const [path, numbers] of descriptors()) expect(numbers).toEqual(kept.get(path));
      await setTimeout(5);
    }
    expect(looks).toBeGreaterThan(3);
    const buffers = await loading;
    expect(nativeMetrics().openFiles).toBe(0);
    await buffers.close();
    await loader.close();
    expect(descriptors().size).toBe(0);
  });

  test('a second load finds none and has every byte', async () => {
    const loader = new SafeTensorsFileLoader(options);
    await loader.addFilenames(files);
    for (let i = 0; i < 2; ++i) {
      const buffers = await loader.copyFilesToDevice();
      expect(nativeMetrics().openFiles).toBe(0);
      for (const { name, bytes } of ENTRIES) {
        const tensor = await buffers.getTensor(name);
        expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
        tensor.dispose();
      }
      await buffers.close();
    }
    await loader.close();
  });
});

test('close(), reset() and a call that fails let go of those that nobody loaded', async () => {
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(files.slice(3));
  await loader.addFilenames(files.slice(0, 3));
  expect(nativeMetrics().openFiles).toBe(SHARDS);
  await expect(loader.addFilenames(files.slice(0, 3))).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR' });
  while (nativeMetrics().openFiles > SHARDS) await setTimeout(1);
  loader.reset();
  while (nativeMetrics().openFiles > 0) await setTimeout(1);
  await loader.addFilenames(files);
  expect(nativeMetrics().openFiles).toBe(SHARDS);
  await loader.close();
  expect(nativeMetrics().openFiles).toBe(0);
});

test('close() waits for it, also where it has nothing else to wait for', async () => {
  for (let i = 0; i < 10; ++i) {
    const loader = new SafeTensorsFileLoader({ copier: '3fs' });
    await loader.addFilenames(files); // on no 3FS, as a load would say
    expect(nativeMetrics().openFiles).toBe(SHARDS);
    await loader.close();
    expect(nativeMetrics().openFiles).toBe(0);
  }
});

test('files without a tensor that is wanted are closed with the load', async () => {
  const filter = (name: string): boolean => name === 't3';
  const loader = new ParallelLoader({ files, filter });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  await expectNothingHeld();
  await loader.close();
  const single = new SafeTensorsFileLoader({ filter });
  await single.addFilenames(files);
  await (await single.copyFilesToDevice()).close();
  await expectNothingHeld();
  await single.close();
});

test('an iteration that ends early or fails lets go of them', async () => {
  const loader = new ParallelLoader({ files, ...SLOWED });
  for await (const [, tensor] of loader.iterateWeights()) {
    tensor.dispose();
    expect(nativeMetrics().openFiles).toBeGreaterThan(1);
    break;
  }
  await expectNothingHeld({ stagingBytes: nativeMetrics().stagingBytes });
  await loader.close();
  const notAll = [...files, `${folder}/absent.safetensors`];
  const missing = new ParallelLoader({ files: notAll });
  await expect(missing.iterateWeights().next()).rejects.toMatchObject({ code: 'IO_ERROR' });
  await expectNothingHeld();
  await missing.close();
  const single = new SafeTensorsFileLoader();
  await expect(single.addFilenames(notAll)).rejects.toMatchObject({ code: 'IO_ERROR' });
  await expectNothingHeld();
  await single.close();
});

test.each(['close', 'abort'])('%s while headers are read lets go of them', async (how) => {
  for (let turns = 0; turns < 6; ++turns) {
    const abort = new AbortController();
    const loader = new SafeTensorsFileLoader({ signal: abort.signal });
    const adding = loader.addFilenames(files).catch(() => {});
    for (let i = 0; i < turns; ++i) await setTimeout(0);
    if (how === 'abort') abort.abort();
    await Promise.all([loader.close(), adding]);
    await expectNothingHeld();
  }
});

test('a loader that is dropped keeps none', async () => {
  await (async () => {
    const loader = new SafeTensorsFileLoader();
    await loader.addFilenames(files);
    expect(nativeMetrics().openFiles).toBe(SHARDS);
  })();
  await expectNothingHeld({ collect: true });
});

test('who reads only headers, or opens files in another way, keeps none', async () => {
  await SafeTensorsMetadata.fromFile(files[0]!);
  const opened = await fastsafeOpen(files);
  expect(nativeMetrics().openFiles).toBe(0);
  (await opened.getTensor('t5')).dispose();
  await opened.close();
  for (const options of [{ odirect: true }, { copier: 'user' }, { copier: 'gds', device: 'cuda:0' }] as const) {
    const loader = new SafeTensorsFileLoader(options);
    await loader.addFilenames(files);
    expect(nativeMetrics().openFiles).toBe(0);
    await loader.close();
  }
});
