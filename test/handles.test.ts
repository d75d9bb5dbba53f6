import { closeSync, fstatSync, openSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import {
  type DeviceTensor,
  exportHandle,
  importTensors,
  loadFile,
  nativeMetrics,
  receiveHandle,
  serveHandle,
} from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { type Entry, newFolder, ODD_ENTRIES, writeModel } from './support/model-files.js';
import { mappedOf, SharingProcess, usersOf } from './support/sharing-process.js';

// exportHandle() and importTensors(): memory of the host for other processes. (cuda-handles.test.ts: that of a GPU.)

let folder: string;
let path: string;
beforeAll(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ODD_ENTRIES);
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(() => expectNothingHeld());

const disposeAll = (tensors: Iterable<DeviceTensor>): void => {
  for (const tensor of tensors) tensor.dispose();
};

async function exported(options = {}) {
  const tensors = Object.values(await loadFile(path, options));
  const handle = await exportHandle(tensors);
  disposeAll(tensors);
  return handle;
}

async function expectSame(received: Map<string, DeviceTensor>): Promise<void> {
  for (const { name, dtype, shape, bytes } of ODD_ENTRIES) {
    const tensor = received.get(name)!;
    expect(tensor).toMatchObject({ name, dtype, shape, byteLength: bytes.length });
    expect(tensor.pointer % 256n).toBe(0n);
    expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
  }
}

test.each([{ mmap: false }, { mmap: true }])(
  '%j: tensors have the same bytes, by name in the order given',
  async (how) => {
    const tensors = Object.values(await loadFile(path, how));
    const handle = await exportHandle(tensors);
    disposeAll(tensors);
    expect(nativeMetrics().openFiles).toBeGreaterThan(0);
    expect(nativeMetrics().hostBytes).toBeGreaterThan(2800);
    const received = await importTensors(handle);
    expect([...received.keys()]).toEqual(tensors.map(({ name }) => name));
    handle.close();
    handle.close();
    await expectSame(received);
    expect(nativeMetrics().mappedBytes).toBeGreaterThan(2800);
    disposeAll(received.values());
    await expectNothingHeld();
  },
);

test('what one importer writes, nobody else sees', async () => {
  const handle = await exported();
  const [one, other] = [await importTensors(handle), await importTensors(handle)];
  new Uint8Array((one.get('a')!.data as Float32Array).buffer).fill(1);
  const later = await importTensors(handle);
  handle.close();
  await expectSame(other);
  await expectSame(later);
  disposeAll([...one.values(), ...other.values(), ...later.values()]);
  await expectNothingHeld({ collect: true });
});

test('an imported tensor can be shared, copied and exported again', async () => {
  using handle = await exported();
  const received = await importTensors(handle);
  using again = await exportHandle([...received.values()]);
  const shared = await importTensors([structuredClone(received.get('a')!.share())]);
  disposeAll(received.values());
  const last = await importTensors(again);
  await expectSame(last);
  expect(Buffer.compare(await shared.get('a')!.toHost(), ODD_ENTRIES[0]!.bytes)).toBe(0);
  disposeAll([...shared.values(), ...last.values()]);
});

test('a list without bytes makes a handle as well', async () => {
  const tensors = Object.values(await loadFile(path, { filter: (name: string) => name === 'empty' }));
  for (const list of [[], tensors]) {
    using handle = await exportHandle(list);
    expect([...(await importTensors(handle)).keys()]).toEqual(list.map(({ name }) => name));
  }
});

test('what cannot be exported is refused', async () => {
  const tensors = await loadFile(path);
  const { a, empty } = tensors;
  const refuses = (list: unknown, code: string) =>
    expect(exportHandle(list as DeviceTensor[])).rejects.toMatchObject({ code });
  await refuses(a, 'INVALID_ARGUMENT');
  await refuses([a, {}], 'INVALID_ARGUMENT');
  await refuses([a, a], 'DUPLICATE_TENSOR');
  empty!.dispose();
  await refuses([a, empty], 'CLOSED');
  for (const name of ['__metadata__', '\ud800']) {
    Object.defineProperty(a, 'name', { value: name });
    await refuses([a], 'INVALID_ARGUMENT');
  }
  disposeAll(Object.values(tensors));
});

describe('nothing of a handle is believed', () => {
  test('descriptors that are none of exportHandle()', async () => {
    using handle = await exported();
    using other = await exported();
    const { fd, description } = handle;
    const refuses = (wrong: object, code: string, message: RegExp) =>
      expect(importTensors({ fd, description, ...wrong })).rejects.toMatchObject({
        code,
        message: expect.stringMatching(message),
      });
    const file = openSync(path, 'r');
    const place = openSync(folder, 'r');
    await refuses({ fd: file }, 'INVALID_ARGUMENT', /no memfd|without all seals/);
    await refuses({ fd: place }, 'INVALID_ARGUMENT', /no memfd|without all seals/);
    closeSync(file);
    closeSync(place);
    await refuses({ fd: 1_000_000 }, 'INVALID_ARGUMENT', /fd: expected an open descriptor, found 1000000/);
    await refuses({ fd: other.fd }, 'INVALID_ARGUMENT', /another export/);
    await refuses({ description: other.description }, 'INVALID_ARGUMENT', /another export/);
    for (const wrong of [-1, 1.5, '3', null, undefined, 2 ** 31])
      await refuses({ fd: wrong }, 'INVALID_ARGUMENT', /fd/);
    await refuses({ description: undefined }, 'INVALID_ARGUMENT', /description/);
    await expect(importTensors(null as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(() => writeFileSync(`/proc/self/fd/${fd}`, 'x')).toThrow(/EPERM|EINVAL/);
  });

  test.each<[string, (text: string) => string, string]>([
    ['no JSON', () => 'x', 'INVALID_HEADER'],
    ['nothing', () => '', 'INVALID_HEADER'],
    ['no facts', () => '{}', 'INVALID_HEADER'],
    ['another version', (text) => text.replace('"version":"1"', '"version":"2"'), 'INVALID_HEADER'],
    ['a larger size', (text) => text.replace(/"size":"\d+"/, '"size":"99999999"'), 'METADATA_INCOMPLETE_BUFFER'],
    ['no seal', (text) => text.replace(/"seal":"\w+"/, '"seal":""'), 'INVALID_HEADER'],
    ['another seal', (text) => text.replace(/"seal":"\w+"/, `"seal":"${'0'.repeat(32)}"`), 'INVALID_ARGUMENT'],
    ['a longer shape', (text) => text.replace('[100,7]', '[100,8]'), 'TENSOR_INVALID_INFO'],
    ['a shape that overflows', (text) => text.replace('[100,7]', '[4294967296,4294967296,7]'), 'TENSOR_INVALID_INFO'],
    ['a dtype that is wider', (text) => text.replace('"F32"', '"F64"'), 'TENSOR_INVALID_INFO'],
    ['an unknown dtype', (text) => text.replace('"F32"', '"F33"'), 'UNKNOWN_DTYPE'],
    ['tensors that overlap', (text) => text.replace('[2800,2866]', '[0,66]'), 'INVALID_OFFSET'],
    ['an equal name', (text) => text.replace('"scalar"', '"a"'), 'DUPLICATE_KEY'],
    [
      'one tensor more',
      (text) => text.replace(/}$/, ',"more":{"dtype":"U8","shape":[100000],"data_offsets":[2873,102873]}}'),
      'METADATA_INCOMPLETE_BUFFER',
    ],
    [
      'a tensor past the end, with a size that fits',
      (text) =>
        text
          .replace(/}$/, ',"more":{"dtype":"U8","shape":[256000],"data_offsets":[2873,258873]}}')
          .replace(/"size":"(\d+)"/, (_, size) => `"size":"${Number(size) + 256_000}"`),
      'METADATA_INCOMPLETE_BUFFER',
    ],
    ['an unknown device', (text) => text.replace('"device":"cpu"', '"device":"tpu"'), 'INVALID_ARGUMENT'],
  ])('a description with %s', async (_, change, code) => {
    using handle = await exported();
    const description = change(handle.description);
    expect(description).not.toBe(handle.description);
    const { fd } = handle;
    await expect(importTensors({ fd, description })).rejects.toMatchObject({
      name: /FastSafetensorsError|TypeError/,
      code,
    });
  });

  test('a socket gives what it was given, and refuses what is no handle', async () => {
    using handle = await exported();
    const socket = join(folder, 'wrong.sock');
    await expect(serveHandle(socket, { fd: 1_000_000, description: '' })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    await expect(serveHandle(socket, {} as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(serveHandle(path, handle)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(receiveHandle(path)).rejects.toMatchObject({ code: 'IO_ERROR' });
    await expect(receiveHandle('x'.repeat(200))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    using server = await serveHandle(socket, { fd: handle.fd, description: 'nonsense ü' });
    using received = await receiveHandle(server.path);
    expect(received.description).toBe('nonsense ü');
    await expect(importTensors(received)).rejects.toMatchObject({ code: 'INVALID_HEADER' });
  });

  test('any description is taken or refused', async () => {
    using handle = await exported();
    const { fd, description } = handle;
    const at = fc.nat({ max: description.length - 1 });
    const piece = fc.oneof(
      fc.string({ maxLength: 4 }),
      fc.constantFrom('0', '9', '-1', '1e9', '"', '}', '[', '2', ','),
    );
    const mutation = fc.tuple(at, fc.nat({ max: 6 }), piece);
    await fc.assert(
      fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 3 }), async (mutations) => {
        let text = description;
        for (const [begin, length, by] of mutations) text = text.slice(0, begin) + by + text.slice(begin + length);
        try {
          for (const tensor of (await importTensors({ fd, description: text })).values()) {
            await tensor.toHost();
            tensor.dispose();
          }
        } catch (error) {
          expect(error).toMatchObject({ code: expect.stringMatching(/^[A-Z_]+$/) });
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe('between processes', () => {
  const COUNT = 8;
  const model: Entry[] = Array.from({ length: COUNT }, (_, i) => {
    const bytes = new Uint8Array(100_000 + i).fill(i + 1);
    return { name: `m.${i + 1}`, dtype: 'U8', shape: [bytes.length], bytes };
  });
  interface Said {
    pid: number;
    fd: number;
    description: string;
  }
  let file: string;
  let text: string;
  beforeAll(async () => {
    file = await writeModel(folder, model, 'processes.safetensors');
    text = join(folder, 'description');
  });

  async function startExporter(of = file): Promise<{ exporter: SharingProcess; where: string; ino: number }> {
    const exporter = new SharingProcess(['exporter', of, '{}']);
    const { pid, fd, description } = await exporter.line<Said>();
    writeFileSync(text, description);
    const where = `/proc/${pid}/fd/${fd}`;
    const opened = openSync(where, 'r');
    const { ino } = fstatSync(opened);
    closeSync(opened);
    return { exporter, where, ino };
  }
  const importers = (where: string, count = 4) =>
    Array.from({ length: count }, () => new SharingProcess(['importer', where, text]));
  const lines = (processes: readonly SharingProcess[]) => Promise.all(processes.map((one) => one.line()));

  test('a child gets the descriptor by its stdio', async () => {
    const tensors = Object.values(await loadFile(file));
    const handle = await exportHandle(tensors);
    disposeAll(tensors);
    writeFileSync(text, handle.description);
    const child = new SharingProcess(['importer', '3', text], { fd: handle.fd });
    expect(await child.line()).toBe('imported');
    handle.close();
    expect(await child.line()).toBe('read again');
    expect(await child.end()).toBe('done');
  });

  test('any process receives it over a socket', async () => {
    const tensors = Object.values(await loadFile(file));
    const handle = await exportHandle(tensors);
    disposeAll(tensors);
    const socket = join(folder, 'model.sock');
    const server = await serveHandle(socket, handle);
    expect(server.path).toBe(socket);
    handle.close();
    const two = [new SharingProcess(['importer', socket]), new SharingProcess(['importer', socket])];
    await lines(two);
    server.close();
    server.close();
    await lines(two);
    expect(await Promise.all(two.map((one) => one.end()))).toEqual(['done', 'done']);
    await expect(receiveHandle(socket)).rejects.toMatchObject({ code: 'IO_ERROR', path: socket });
  });

  test('the exporter is killed while four read: they go on with right bytes, and nothing is left', async () => {
    const { exporter, where, ino } = await startExporter();
    const four = importers(where);
    await lines(four);
    await exporter.kill();
    await lines(four);
    expect(new Set(usersOf(ino))).toEqual(new Set(four.map(({ process }) => process.pid)));
    expect(await Promise.all(four.map((one) => one.end()))).toEqual(four.map(() => 'done'));
    expect(usersOf(ino)).toEqual([]);
  });

  test('four importers take the memory once', async () => {
    const bytes = Number(process.env.FST_TEST_SHARED_MIB ?? 32) * 2 ** 20;
    const large = { name: 'm.9', dtype: 'U8' as const, shape: [bytes], bytes: new Uint8Array(bytes).fill(9) };
    const { exporter, where, ino } = await startExporter(await writeModel(folder, [large], 'large.safetensors'));
    const four = importers(where);
    await lines(four);
    await lines(four);
    const mapped = four.map(({ process }) => mappedOf(process.pid!, ino));
    for (const { rss } of mapped) expect(rss).toBeGreaterThanOrEqual(bytes);
    expect(mapped.reduce((sum, { pss }) => sum + pss, 0)).toBeLessThanOrEqual(1.1 * bytes);
    await Promise.all(four.map((one) => one.kill()));
    await exporter.end();
  });

  test('an importer is killed while it reads: the others go on, and nothing is left', async () => {
    const { exporter, where, ino } = await startExporter();
    const four = importers(where);
    await lines(four);
    await Promise.all(four.slice(0, 2).map((one) => one.kill()));
    await lines(four.slice(2));
    const late = importers(where, 1);
    await lines(late);
    await lines(late);
    expect(await Promise.all([...four.slice(2), ...late].map((one) => one.end()))).toEqual(['done', 'done', 'done']);
    expect(usersOf(ino)).toEqual([exporter.process.pid]);
    await exporter.end();
    expect(usersOf(ino)).toEqual([]);
  });
});
