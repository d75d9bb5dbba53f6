import { rm } from 'node:fs/promises';
import {
  type Copier,
  type CopyRange,
  type CopyRequest,
  createCopierConstructor,
  type Destination,
  type DeviceTensor,
  FastSafetensorsError,
  type LoaderOptions,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// A copier of the user's own cannot make a loader hand out bytes that nobody vouches for, touch what is not its
// request's, or hang a load.

const FIRST = [entry('a', 'U8', [1000]), entry('b', 'U8', [3000])];
const SECOND = [entry('c', 'U8', [2000])];

let folder: string;
let files: string[];
beforeEach(async () => {
  folder = await newFolder();
  files = [await writeModel(folder, FIRST, '1.safetensors'), await writeModel(folder, SECOND, '2.safetensors')];
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

/** A copier whose requests are promises; it closes at once unless `close` is given. */
function copier(copy: (request: CopyRequest) => Promise<void>, close = async (): Promise<void> => {}): string {
  registerCopier('proof', () => () => {
    const made: Copier<Promise<void>> = { submitIo: copy, waitIo: (pending) => pending, close };
    return made as Copier;
  });
  return 'proof';
}

async function fill({ destination, ranges }: CopyRequest, value: number): Promise<void> {
  for (const { destOffset, length } of ranges) await destination.write(destOffset, new Uint8Array(length).fill(value));
}

/** The first byte of each tensor, by name. */
async function load(name: string, options: LoaderOptions = {}, from = files): Promise<Record<string, number[]>> {
  const loader = new ParallelLoader({ files: from, copier: name, ...options });
  const read: Record<string, number[]> = {};
  try {
    for await (const [key, tensor] of loader.iterateWeights()) {
      read[key] = [...new Set(await tensor.toHost())];
      tensor.dispose();
    }
  } finally {
    await loader.close();
  }
  return read;
}

test('a request’s ranges are its own: other places of the allocation are INVALID_ARGUMENT', async () => {
  const kept: DeviceTensor[] = [];
  const refusals: unknown[] = [];
  const name = copier(async (request) => {
    const { destination, ranges } = request;
    await fill(request, request.path === files[1] ? 2 : 1);
    const { destOffset, length } = ranges.at(-1)!;
    const outside: [number, number][] = request.path === files[1] ? [[0, 10]] : [];
    outside.push([destOffset, length + 1], [destOffset + length, 1]); // padding, or another's
    for (const [offset, bytes] of outside)
      refusals.push(await destination.write(offset, new Uint8Array(bytes).fill(99)).catch((error) => error.code));
  });
  const loader = new ParallelLoader({ files, copier: name });
  for await (const [, tensor] of loader.iterateWeights()) kept.push(tensor);
  await loader.close();
  expect(refusals).toEqual(new Array(5).fill('INVALID_ARGUMENT'));
  for (const tensor of kept) {
    expect([...new Set(await tensor.toHost())]).toEqual([tensor.name === 'c' ? 2 : 1]);
    tensor.dispose();
  }
});

test('a write after waitIo is CLOSED, one it left behind is waited for, and ranges cannot be widened', async () => {
  const destinations: Destination[] = [];
  let late: Promise<void> = Promise.resolve();
  const name = copier(async ({ destination, ranges }) => {
    destinations.push(destination);
    for (const range of ranges as { -readonly [K in keyof CopyRange]: number }[]) {
      late = destination.write(range.destOffset, new Uint8Array(range.length).fill(5)); // nobody waits
      range.length = 2 ** 40;
    }
  });
  const loader = new SafeTensorsFileLoader({ copier: name });
  await loader.addFilenames(files);
  const buffers = await loader.copyFilesToDevice();
  await late;
  for (const destination of destinations)
    await expect(destination.write(0, Uint8Array.of(9))).rejects.toMatchObject({ code: 'CLOSED' });
  for (const key of buffers.keys()) {
    const tensor = await buffers.getTensor(key);
    expect([...new Set(await tensor.toHost())]).toEqual([5]);
    tensor.dispose();
  }
  await buffers.close();
  await loader.close();
});

test.each<[string, (request: CopyRequest) => Promise<void>, string]>([
  ['nothing', async () => {}, 'a'],
  [
    'all but a byte in the middle',
    async ({ destination, ranges: [a, b] }) => {
      await destination.write(a!.destOffset, new Uint8Array(a!.length));
      await destination.write(b!.destOffset + 1501, new Uint8Array(b!.length - 1501));
      await destination.write(b!.destOffset, new Uint8Array(1500));
    },
    'b',
  ],
  [
    'all but the last byte',
    async ({ destination, ranges: [a, b] }) => {
      await destination.write(a!.destOffset, new Uint8Array(a!.length));
      await destination.write(b!.destOffset, new Uint8Array(b!.length - 1));
    },
    'b',
  ],
])('a copier that writes %s is a SHORT_READ that names the tensor', async (_, copy, tensor) => {
  const error = await load(copier(copy), {}, files.slice(0, 1)).then(
    () => undefined,
    (thrown) => thrown,
  );
  expect(error).toBeInstanceOf(FastSafetensorsError);
  expect(error).toMatchObject({ code: 'SHORT_READ', path: files[0], tensor, offset: expect.any(Number) });
});

test('bytes may be written in any order and twice', async () => {
  const name = copier(async ({ destination, ranges }) => {
    for (const { destOffset, length } of ranges) {
      const starts = Array.from({ length: Math.ceil(length / 70) }, (_, i) => 70 * i);
      starts.sort((a, b) => ((a * 7919) % 1009) - ((b * 7919) % 1009));
      for (const start of starts) {
        const begin = Math.max(0, start - 5);
        await destination.write(destOffset + begin, new Uint8Array(Math.min(75, length - begin)).fill(3));
      }
    }
  });
  expect(await load(name)).toEqual({ a: [3], b: [3], c: [3] });
});

test('a copier that asks for the pointer answers for its bytes itself', async () => {
  const name = copier(async ({ destination }) => {
    expect(destination.pointer % 256n).toBe(0n);
  });
  expect(Object.keys(await load(name))).toEqual(['a', 'b', 'c']);
});

test('a copier that passes its requests to a built-in one', async () => {
  const outside: unknown[] = [];
  registerCopier('wrapping', (device, options) => {
    const make = createCopierConstructor('nogds', device, options);
    return (metadata, on) => {
      const inner = make(metadata, on);
      return {
        async submitIo(request) {
          const wide = request.ranges.map((range) => ({ ...range, length: range.length + 1 }));
          const first = request.ranges[0]!;
          const another = { ...first, destOffset: request.path === files[0] ? 4096 : 0, length: 10 };
          for (const ranges of [wide, [another], [{ ...first, length: Number.NaN }]]) {
            const refused = inner.waitIo(inner.submitIo({ ...request, ranges }));
            outside.push(await refused.catch((error) => error.code));
          }
          await inner.waitIo(inner.submitIo(request));
        },
        waitIo: (pending) => pending as Promise<void>,
        close: () => inner.close(),
      };
    };
  });
  const loader = new ParallelLoader({ files, copier: 'wrapping' });
  for await (const [key, tensor] of loader.iterateWeights()) {
    const want = [...FIRST, ...SECOND].find(({ name }) => name === key)!;
    expect(Buffer.compare(await tensor.toHost(), want.bytes)).toBe(0);
    tensor.dispose();
  }
  await loader.close();
  expect(outside).toEqual(new Array(6).fill('INVALID_ARGUMENT'));
});

const never = (): Promise<void> => new Promise(() => {});

test('a copier that never ends a request is STALLED, and close() does not wait for it for ever', async () => {
  await expect(load(copier(never), { stallTimeoutMs: 50, logger: quiet })).rejects.toMatchObject({
    code: 'STALLED',
    message: expect.stringContaining('stallTimeoutMs'),
  });
});

test('a copier that writes is not stalled, however long it takes', async () => {
  const name = copier(async ({ destination, ranges }) => {
    for (const { destOffset, length } of ranges) {
      for (let at = 0; at < length; at += 250) {
        await new Promise((resolve) => setTimeout(resolve, 40));
        await destination.write(destOffset + at, new Uint8Array(250).fill(1));
      }
    }
  });
  expect(await load(name, { stallTimeoutMs: 400 })).toEqual({ a: [1], b: [1], c: [1] });
});

test('a copier that never ends to close is STALLED when all is loaded', async () => {
  const loader = new SafeTensorsFileLoader({
    copier: copier((request) => fill(request, 1), never),
    stallTimeoutMs: 50,
    logger: quiet,
  });
  await loader.addFilenames(files);
  await expect(loader.copyFilesToDevice()).rejects.toMatchObject({ code: 'STALLED' });
  await loader.close();
  // Tensors that were yielded before are as they were.
  expect(
    await load(
      copier((request) => fill(request, 1), never),
      { stallTimeoutMs: 50, logger: quiet },
    ),
  ).toEqual({
    a: [1],
    b: [1],
    c: [1],
  });
});

const quiet = { debug() {}, info() {}, warn() {} };

test.each<[string, unknown, string]>([
  ['undefined', undefined, 'undefined'],
  ['null', null, 'null'],
  ['a number', 1, 'number'],
  ['an empty object', {}, 'submitIo, waitIo, close'],
  ['no close', { submitIo() {}, waitIo: async () => {} }, 'close'],
  ['no waitIo', { submitIo() {}, close: async () => {} }, 'waitIo'],
  ['no submitIo', { submitIo: 1, waitIo: async () => {}, close: async () => {} }, 'submitIo'],
])('a constructor that makes %s is INVALID_ARGUMENT, saying what is missing', async (_, made, missing) => {
  registerCopier('incomplete', () => () => made as Copier);
  const error = await load('incomplete').then(
    () => undefined,
    (thrown) => thrown,
  );
  expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(missing) });
});
