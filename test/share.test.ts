import { rm } from 'node:fs/promises';
import { deserialize, serialize } from 'node:v8';
import { type DeviceTensor, fastsafeOpen, importTensors, loadFile, type SharedTensor } from 'fastsafetensors-node';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { expectClean } from './support/child.js';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, ODD_ENTRIES, writeModel } from './support/model-files.js';

// tensor.share(): the same memory in another thread, counted. Here both ends are one thread; share.child.cjs has
// workers.

let folder: string;
let path: string;
beforeAll(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ODD_ENTRIES);
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(() => expectNothingHeld());

const load = (options = {}): Promise<Record<string, DeviceTensor>> => loadFile(path, options);
const disposeAll = (tensors: Iterable<DeviceTensor>): void => {
  for (const tensor of tensors) tensor.dispose();
};
/** As a message brings it. */
const posted = <T>(value: T): T => structuredClone(value);

describe.each<[string, object]>([
  ['copied', { mmap: false }],
  ['mapped', { mmap: true }],
  ['on a device', { device: 'cuda:0' }],
])('%s', (_, options) => {
  beforeAll(() => useFakeDevices({}));
  afterAll(() => useFakeDevices(null));

  test('tensors are the same memory, by name in the order given, also after the sender disposed them', async () => {
    const tensors = await load(options);
    const pointers = Object.values(tensors).map(({ pointer }) => pointer);
    const shares = posted(Object.values(tensors).map((tensor) => tensor.share()));
    disposeAll(Object.values(tensors));
    const received = await importTensors(shares);
    expect([...received.keys()]).toEqual(Object.keys(tensors));
    expect([...received.values()].map(({ pointer }) => pointer)).toEqual(pointers);
    for (const { name, dtype, shape, bytes } of ODD_ENTRIES) {
      const tensor = received.get(name)!;
      expect(tensor).toMatchObject({ name, dtype, shape, byteLength: bytes.length });
      expect(tensor.device.toString()).toBe(Object.values(tensors)[0]!.device.toString());
      expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
    }
    disposeAll(received.values());
  });
});

test('a share can be received again while somebody holds its memory, and is CLOSED then', async () => {
  const tensors = await load();
  const share = posted(tensors.a!.share());
  const first = await importTensors([share]);
  const second = await importTensors([share]);
  disposeAll(Object.values(tensors));
  disposeAll(first.values());
  const third = await importTensors([share]);
  disposeAll(second.values());
  expect(Buffer.compare(await third.get('a')!.toHost(), ODD_ENTRIES[0]!.bytes)).toBe(0);
  disposeAll(third.values());
  await expect(importTensors([share])).rejects.toMatchObject({ code: 'CLOSED' });
});

test('what is written in one place is read in the other', async () => {
  const tensors = await load({ mmap: false });
  const received = await importTensors([posted(tensors.a!.share())]);
  (received.get('a')!.data as Float32Array)[3] = 42;
  expect((tensors.a!.data as Float32Array)[3]).toBe(42);
  disposeAll([...Object.values(tensors), ...received.values()]);
  await expectNothingHeld({ collect: true }); // typed arrays hold it, too
});

test('what nobody receives is held until it is revoked', async () => {
  const tensors = await load();
  const share = tensors.a!.share();
  const received = tensors['b "quoted" ü']!.share();
  disposeAll(Object.values(tensors));
  disposeAll((await importTensors([posted(received)])).values());
  await expect(expectNothingHeld({ timeoutMs: 50 })).rejects.toThrow();
  share.revoke();
  share.revoke();
  received.revoke();
  await expectNothingHeld();
  await expect(importTensors([share])).rejects.toMatchObject({ code: 'CLOSED' });
});

test('all or none: what is wrong with one share leaves the others to be received', async () => {
  const tensors = await load();
  const [a, b] = [tensors.a!.share(), tensors['b "quoted" ü']!.share()];
  disposeAll(Object.values(tensors));
  const wrong = async (changed: object, code: string, first: SharedTensor = a): Promise<void> => {
    await expect(importTensors([first, { ...posted(b), ...changed } as SharedTensor])).rejects.toMatchObject({ code });
  };
  await wrong({ token: b.token.replace(/\d+$/, '123456') }, 'INVALID_ARGUMENT');
  await wrong({ token: `${b.token}x` }, 'INVALID_ARGUMENT');
  await wrong({ token: 'fst-0000000000000000-1' }, 'INVALID_ARGUMENT');
  await wrong({ token: 7 }, 'INVALID_ARGUMENT');
  await wrong({ name: undefined }, 'INVALID_ARGUMENT');
  await wrong({ name: 'a' }, 'DUPLICATE_TENSOR');
  await wrong({ shape: [34] }, 'TENSOR_INVALID_INFO');
  await wrong({ shape: [34], byteLength: 68 }, 'TENSOR_INVALID_INFO');
  await wrong({ shape: [32], byteLength: 64 }, 'TENSOR_INVALID_INFO');
  await wrong({ shape: [2 ** 53, 2 ** 53, 0] }, 'TENSOR_INVALID_INFO');
  await wrong({ shape: [-1] }, 'TENSOR_INVALID_INFO');
  await wrong({ dtype: 'toString' }, 'UNKNOWN_DTYPE');
  await wrong({ dtype: 'F4', shape: [3] }, 'TENSOR_INVALID_INFO');
  await expect(importTensors('x' as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(importTensors([null as never])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  disposeAll((await importTensors([a, b])).values());
  expect(() => tensors.a!.share()).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  expect(await importTensors([])).toEqual(new Map());
});

test('a message that was kept as bytes is good as well', async () => {
  const tensors = await load();
  const share = deserialize(serialize(tensors.a!.share())) as SharedTensor;
  disposeAll(Object.values(tensors));
  disposeAll((await importTensors([share])).values());
});

test.each([
  ['received', 'four workers receive a model of the main thread, which disposes it at once'],
  ['fromWorker', 'the main thread receives a model from a worker that ends'],
  ['receiversEnd', 'workers end or are terminated with what they received, and give it back'],
  ['neverReceived', 'a worker ends before it has read its messages: the sender revokes'],
  ['senderTerminated', 'a worker is terminated while it shares: what was posted can be received'],
  ['readWhileTerminated', 'a worker is terminated while it copies out of what it received'],
])('%s: %s', async (scenario) => {
  await expectClean('share.child.cjs', [scenario], { flags: ['--expose-gc'] });
});

test('memory that lazy reads share is not used again while a share of it can be received', async () => {
  const entries = Array.from({ length: 400 }, (_, i) => entry(`t${i}`, 'U8', [4096]));
  await using opened = await fastsafeOpen(await writeModel(folder, entries, 'many.safetensors'));
  (await opened.getTensor('t0')).dispose();
  await new Promise((resolve) => setTimeout(resolve, 50)); // its file is open: the next ones are read on the spot
  const some = async (from: number, to: number): Promise<DeviceTensor[]> =>
    Promise.all(entries.slice(from, to).map(({ name }) => opened.getTensor(name)));
  const first = await some(1, 20);
  const share = posted(first[10]!.share());
  disposeAll((await importTensors([share])).values());
  disposeAll(first);
  for (let i = 0; i < 4; ++i) disposeAll(await some(20 + 90 * i, 110 + 90 * i));
  const again = await importTensors([share]).catch((error) => error.code);
  if (again !== 'CLOSED') {
    expect(Buffer.compare(await again.get('t11')!.toHost(), entries[11]!.bytes)).toBe(0);
    disposeAll(again.values());
  }
});
