import { rm } from 'node:fs/promises';
import { setTimeout } from 'node:timers/promises';
import {
  type CopierFactory,
  type CopyRange,
  Device,
  fastsafeOpen,
  type LoaderOptions,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { milliseconds } from '../src/base/timers';
import { makeCopier } from '../src/copiers/registry';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';
import { expectSame, LOADERS, userCopier } from './support/read-back.js';

// What a loader's options demand of a copier: it is carried out, or refused, and never ignored.

const ENTRIES = [entry('a', 'U8', [50_000]), entry('b', 'F32', [1000]), entry('c', 'U8', [30_000])];
const BYTES = 84_000;
const RATE = 200_000;

/** Requests that the copier 'user' had. */
let requests: { at: number; ranges: readonly CopyRange[] }[] = [];
const watched: CopierFactory = (device, options) => (metadata, on) => {
  const copier = userCopier(device, options)(metadata, on);
  return {
    submitIo(request) {
      requests.push({ at: milliseconds(), ranges: request.ranges });
      return copier.submitIo(request);
    },
    waitIo: (pending) => copier.waitIo(pending),
    close: () => copier.close(),
  };
};
registerCopier('user', watched);

let folder: string;
let path: string;
beforeEach(async () => {
  requests = [];
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

const sizeOf = ({ ranges }: { ranges: readonly CopyRange[] }): number =>
  ranges.reduce((sum, { length }) => sum + length, 0);

/** No request begins before those before it are paid for. */
function expectPaced(begin: number): void {
  let asked = 0;
  for (const request of requests) {
    expect(request.at - begin).toBeGreaterThan((1000 * asked) / RATE - 10);
    expect(sizeOf(request)).toBeLessThanOrEqual(RATE / 10);
    asked += sizeOf(request);
  }
  expect(asked).toBe(BYTES);
}

describe('maxBytesPerSecond', () => {
  test.each(Object.entries(LOADERS))('holds for a copier of the user’s own, %s', async (_, load) => {
    const begin = milliseconds();
    expectSame(await load([path], { copier: 'user', maxBytesPerSecond: RATE }), ENTRIES);
    expectPaced(begin);
  });

  test('holds for loads at the same time together', async () => {
    const opened = await fastsafeOpen(path, { copier: 'user', maxBytesPerSecond: RATE });
    const begin = milliseconds();
    await Promise.all(['a', 'b', 'c'].map(async (name) => (await opened.getTensor(name)).dispose()));
    expectPaced(begin);
    await opened.close();
  });

  test('does not delay an end, nor the load after a load that was aborted', async () => {
    const files = await Promise.all(ENTRIES.map((tensor, i) => writeModel(folder, [tensor], `${i}.safetensors`)));
    const loader = new SafeTensorsFileLoader({ copier: 'user', maxBytesPerSecond: 4096 }); // a piece a second
    await loader.addFilenames(files);
    const begin = milliseconds();
    const signal = AbortSignal.timeout(50);
    await expect(loader.copyFilesToDevice({ signal })).rejects.toMatchObject({ name: 'TimeoutError' });
    expect(milliseconds() - begin).toBeLessThan(900);
    const refused = expect(loader.copyFilesToDevice()).rejects.toMatchObject({ code: 'CLOSED' });
    while (requests.length < 2) await setTimeout(5);
    expect(milliseconds() - begin).toBeLessThan(1900); // what the first load did not ask for is not waited for: 3 s
    await loader.close();
    await refused;
  });

  test('takes tensors of a mock copier in parts', async () => {
    const bytes = Uint8Array.from({ length: 50_000 }, (_, i) => i);
    registerCopier('mock', mockCopier({ tensors: { a: bytes } }));
    const opened = await fastsafeOpen(path, { copier: 'mock', maxBytesPerSecond: RATE });
    const tensor = await opened.getTensor('a');
    expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
    tensor.dispose();
    await opened.close();
  });

  test.each([Number.POSITIVE_INFINITY, undefined])('of %p leaves one request for each allocation', async (rate) => {
    expectSame(await LOADERS.SafeTensorsFileLoader!([path], { copier: 'user', maxBytesPerSecond: rate }), ENTRIES);
    expect(requests).toHaveLength(1);
  });
});

const READER = { readChunked: () => 0 };
test.each<[string, LoaderOptions, RegExp]>([
  ['staging for a copier of the user’s own', { copier: 'user', staging: 'always' }, /^staging: .*"user".*'nogds'/],
  ['staging for a reader', { copier: '3fs', reader: READER, staging: 'always' }, /^staging: .*"3fs"/],
  [
    'staging from the page cache for a reader',
    { device: 'cuda:0', copier: 'user', staging: 'mapped' },
    /^staging: 'mapped'.*"user"/,
  ],
  ['a reader for another copier', { copier: 'nogds', reader: READER }, /^reader: .*'nogds'.*copier: '3fs'/],
  ['a reader where another copier is chosen', { reader: READER }, /^reader: .*copier: '3fs'/],
  ['options of one’s own for another copier', { copier: 'nogds', copierOptions: {} }, /^copierOptions: .*'nogds'/],
])('%s is refused', async (_, options, message) => {
  const loader = new ParallelLoader({ files: path, ...options });
  const refused = expect(loader.iterateWeights().next()).rejects;
  await refused.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) });
  await loader.close();
});

test("odirect is for 'unified', too", () => {
  for (const copier of ['nogds', 'unified']) {
    const made = makeCopier(copier, Device.parse('cuda'), { odirect: true, dropCache: true });
    expect(made).toMatchObject({ reader: { kind: 'file', direct: true, dropCache: true } });
  }
});
