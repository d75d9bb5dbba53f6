import { join } from 'node:path';
import { type LoaderOptions, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { native } from '../src/native/addon.js';
import { encodeFile, entry } from './support/model-files.js';
import { isOnDisk, writeToDisk } from './support/on-disk.js';
import { testFolder } from './support/tensor-files.js';

// maxBytesPerSecond: no load is faster. That it is not slower either, `npm run bench -- checksum --rate 10` shows.

const folder = testFolder();
const SIZE = 40 << 20;
const onDisk = isOnDisk(folder);
const test_ = onDisk ? test : test.skip;
if (!onDisk) console.warn(`rate-limit.test.ts: skipped what needs a disk: ${folder} is on none`);

function write(name: string, bytes = SIZE): string {
  return writeToDisk(join(folder, `${name}.safetensors`), encodeFile([entry(name, 'U8', [bytes])]));
}

async function load(loader: SafeTensorsFileLoader, path: string): Promise<void> {
  loader.reset();
  await loader.addFilenames(path);
  await using _ = await loader.copyFilesToDevice();
}

/** Bytes that the limit allows in the time that `run` takes, and what reads may be ahead by. */
async function allowed(rate: number, run: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await run();
  return ((performance.now() - began) / 1000) * rate + rate / 50;
}

test.each([
  ['mapped', { mmap: true }],
  ['copied', { mmap: false }],
] as const)('%s: the rate is that of the limit, also for little', async (name, options: LoaderOptions) => {
  const bytes = 8 << 20;
  const path = write(name, bytes);
  const rate = 40e6;
  await using loader = new SafeTensorsFileLoader({ ...options, maxBytesPerSecond: rate });
  for (let i = 0; i < 2; ++i) expect(bytes).toBeLessThanOrEqual(await allowed(rate, () => load(loader, path)));
});

test_('loads through the page cache and past it keep to one limit', async () => {
  const [warm, cold] = [write('warm'), write('cold')];
  const rate = 160e6;
  await using dropping = new SafeTensorsFileLoader({ dropCache: true, odirect: false });
  await load(dropping, cold);
  expect(await native().areCold([{ path: cold }], Float64Array.of(0, SIZE))).toBe(true);
  await using loader = new SafeTensorsFileLoader({ mmap: false, maxBytesPerSecond: rate });
  await loader.addFilenames(warm);
  const both = await allowed(rate, async () => {
    const first = loader.copyFilesToDevice(); // of the files that there are now
    await load(loader, cold);
    await using _ = await first;
  });
  expect(2 * SIZE).toBeLessThanOrEqual(both);
});
