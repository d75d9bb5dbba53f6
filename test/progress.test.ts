import { rm } from 'node:fs/promises';
import { basename } from 'node:path';
import { ParallelLoader, type Progress, registerCopier, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { fakeReader, mockCopier } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// Progress is told by bytes, monotone and complete: each file begins and is done once, in order; the total ends at all
// bytes.

registerCopier('paced', fakeReader({ chunk: 8192, inFlight: 3, msPerIo: 25, reorder: true }));
registerCopier('paced mock', mockCopier({ delayMs: 250 }));

let folder: string;
let paths: string[];
beforeEach(async () => {
  folder = await newFolder();
  paths = [
    await writeModel(folder, [entry('a', 'U8', [60_000]), entry('b', 'U8', [30_000])], '1.safetensors'),
    await writeModel(folder, [], '2.safetensors'),
    await writeModel(folder, [entry('empty', 'U8', [0])], '3.safetensors'),
    await writeModel(folder, [entry('c', 'F32', [20_000])], '4.safetensors'),
  ];
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

function expectComplete(events: Progress[]): void {
  const totals = events.filter(({ status }) => status === 'progress_total');
  expect(totals.length).toBeGreaterThan(2);
  let before = { loaded: 0, tensorsLoaded: 0 };
  for (const event of totals) {
    expect(event).toMatchObject({ name: 'total', file: '', total: 170_000 });
    expect(event.loaded).toBeGreaterThanOrEqual(before.loaded);
    expect(event.tensorsLoaded).toBeGreaterThanOrEqual(before.tensorsLoaded);
    expect(event.progress).toBeCloseTo((100 * event.loaded) / 170_000);
    expect(event.bytesPerSecond).toBeGreaterThanOrEqual(0);
    before = event;
  }
  expect(totals.at(-1)).toMatchObject({ loaded: 170_000, progress: 100, tensorsLoaded: 4 });

  const sizes = [90_000, 0, 0, 80_000];
  for (const [i, path] of paths.entries()) {
    const mine = events.filter(({ file }) => file === path);
    const statuses = mine.map(({ status }) => status);
    expect(statuses.filter((status) => status === 'initiate').length).toBe(1);
    expect(statuses.filter((status) => status === 'done').length).toBe(1);
    expect(statuses[0]).toBe('initiate');
    expect(statuses.at(-1)).toBe('done');
    let loaded = 0;
    for (const event of mine) {
      expect(event).toMatchObject({ name: basename(path), total: sizes[i] });
      expect(event.loaded).toBeGreaterThanOrEqual(loaded);
      expect(event.loaded).toBeLessThanOrEqual(event.total);
      loaded = event.loaded;
    }
    expect(mine.at(-1)).toMatchObject({ loaded: sizes[i], progress: 100 });
  }
  const done = events.filter(({ status }) => status === 'done').map(({ file }) => file);
  expect(done).toEqual(paths);
}

test.each(['paced', 'paced mock'])('ParallelLoader tells its progress, %s', async (copier) => {
  for (const order of ['file', 'ready'] as const) {
    const events: Progress[] = [];
    const loader = new ParallelLoader({ files: paths, copier, order, onProgress: (event) => events.push(event) });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
    expectComplete(events);
    // The mock's requests run beside each other and end at the same time.
    if (copier === 'paced') expect(events.some(({ loaded, total }) => loaded > 0 && loaded < total)).toBe(true);
  }
});

test('a copy tells its own callback instead of the loader’s', async () => {
  const loaders: Progress[] = [];
  const own: Progress[] = [];
  const loader = new SafeTensorsFileLoader({ copier: 'paced', onProgress: (event) => loaders.push(event) });
  await loader.addFilenames(paths);
  await (await loader.copyFilesToDevice()).close();
  const count = loaders.length;
  expectComplete(loaders);
  await (await loader.copyFilesToDevice({ onProgress: (event) => own.push(event) })).close();
  expectComplete(own);
  expect(loaders.length).toBe(count);
  await loader.close();
});

test.each([1, 2, 6])('an exception in the callback at event %i ends the load with it', async (at) => {
  let events = 0;
  const error = new Error('from the callback');
  const onProgress = (): void => {
    if (++events === at) throw error;
  };
  const parallel = new ParallelLoader({ files: paths, copier: 'paced', onProgress });
  const iterate = async (): Promise<void> => {
    for await (const [, tensor] of parallel.iterateWeights()) tensor.dispose();
  };
  await expect(iterate()).rejects.toBe(error);
  await parallel.close();
  const loader = new SafeTensorsFileLoader({ copier: 'paced' });
  await loader.addFilenames(paths);
  events = 0;
  await expect(loader.copyFilesToDevice({ onProgress })).rejects.toBe(error);
  await (await loader.copyFilesToDevice()).close(); // the loader is as it was
  await loader.close();
});

test.each([undefined, null, 0, '', 'a string'])('so does %p, which is no Error', async (thrown) => {
  const onProgress = (): void => {
    throw thrown;
  };
  for (const copier of ['paced', 'paced mock']) {
    const parallel = new ParallelLoader({ files: paths, copier, onProgress });
    await expect(parallel.iterateWeights().next()).rejects.toBe(thrown);
    await parallel.close();
    const loader = new SafeTensorsFileLoader({ copier });
    await loader.addFilenames(paths);
    await expect(loader.copyFilesToDevice({ onProgress })).rejects.toBe(thrown);
    await loader.close();
  }
});

test('options of a copy are checked', async () => {
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames(paths);
  for (const options of [{ onprogress: () => {} }, { signal: 1 }, { onProgress: 1 }, { dtype: 'X' }]) {
    await expect(loader.copyFilesToDevice(options as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  }
  await expect(loader.copyFilesToDevice({ dtype: 'U8' as never })).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE' });
  await loader.close();
});

test('`progress: true` draws one line on a terminal, over itself, and nothing elsewhere', async () => {
  const { isTTY, columns } = process.stderr;
  let drawn = '';
  const write = jest.spyOn(process.stderr, 'write').mockImplementation((text) => {
    drawn += text;
    return true;
  });
  try {
    const load = async (as: Partial<typeof process.stderr>) => {
      drawn = '';
      Object.assign(process.stderr, as);
      const loader = new ParallelLoader({ files: paths, progress: true, copier: 'paced' });
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
      await loader.close();
      return drawn;
    };
    expect(await load({ isTTY: false })).toBe('');
    const CLEAR = '\u001b[K'; // what is left of a longer line
    const linesOf = (text: string) => text.replaceAll(CLEAR, '').split('\r').slice(1);
    const lines = linesOf(await load({ isTTY: true, columns: 200 }));
    expect(drawn.split(CLEAR).length).toBe(lines.length + 1);
    expect(lines.length).toBeGreaterThan(2);
    for (const line of lines) expect(line).toMatch(/^loading \[=*-*\] 0\.00 of 0\.00 GB, .* GB\/s, \d tensors\n?$/);
    expect(lines.at(-1)).toContain(`[${'='.repeat(40)}]`);
    expect(lines.map((line) => line.endsWith('\n'))).toEqual(lines.map((_, i) => i === lines.length - 1));
    const narrow = linesOf(await load({ isTTY: true, columns: 20 }));
    expect(narrow.every((line) => line.trimEnd().length < 20)).toBe(true);
  } finally {
    write.mockRestore();
    Object.assign(process.stderr, { isTTY, columns });
  }
});
