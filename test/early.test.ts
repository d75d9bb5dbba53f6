import { rm } from 'node:fs/promises';
import { nativeMetrics, registerCopier, SafeTensorsFileLoader } from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// copyFilesToDevice({ early: true }): the buffer comes when the load has begun, each tensor when its bytes are there.

const A = [entry('a', 'F32', [16]), entry('none', 'F32', [0])];
const B = [entry('b', 'F32', [16]), entry('b2', 'F32', [4])];
const bytesOf = (name: string) => Buffer.from([...A, ...B].find((each) => each.name === name)!.bytes);

let folder: string;
let paths: [string, string];
let open: (path: string) => void; // lets the held copier go on with a file
let fail: (path: string, error: Error) => void;

beforeEach(async () => {
  folder = await newFolder();
  paths = [await writeModel(folder, A, 'a.safetensors'), await writeModel(folder, B, 'b.safetensors')];
  const gates = new Map(paths.map((path) => [path, newGate()]));
  open = (path) => gates.get(path)!.resolve();
  fail = (path, error) => gates.get(path)!.reject(error);
  for (const gate of gates.values()) gate.promise.catch(() => {});
  const all = new Map(paths.map((path, i) => [path, [A, B][i]!]));
  registerCopier('held', () => () => ({
    async submitIo({ path, ranges, destination, signal }) {
      const aborted = new Promise<never>((_, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason));
      });
      await Promise.race([gates.get(path)!.promise, aborted]);
      const file = Buffer.concat(all.get(path)!.map(({ bytes }) => bytes));
      const first = ranges[0]!.fileOffset;
      for (const { fileOffset, length, destOffset } of ranges)
        await destination.write(destOffset, file.subarray(fileOffset - first, fileOffset - first + length));
    },
    waitIo: (pending) => pending as Promise<void>,
    close: async () => {},
  }));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

interface Gate {
  promise: Promise<void>;
  resolve: () => void;
  reject: (error: Error) => void;
}

function newGate(): Gate {
  const gate = {} as Gate;
  gate.promise = new Promise((resolve, reject) => Object.assign(gate, { resolve, reject }));
  return gate;
}

async function begun(options: object = {}, load: object = {}) {
  const loader = new SafeTensorsFileLoader({ copier: 'held', ...options });
  await loader.addFilenames(paths);
  return { loader, buffer: await loader.copyFilesToDevice({ early: true, ...load }) };
}

async function expectTensor(given: Promise<{ toHost(): Promise<Uint8Array>; dispose(): void }>, name: string) {
  const tensor = await given;
  expect(Buffer.from(await tensor.toHost())).toEqual(bytesOf(name));
  tensor.dispose();
}

async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  promise.then(
    () => (settled = true),
    () => (settled = true),
  );
  await new Promise((resolve) => setTimeout(resolve, 20));
  return settled;
}

test('a tensor comes with its own bytes, before the load ends', async () => {
  const { loader, buffer } = await begun();
  expect(buffer.keys()).toEqual(['a', 'none', 'b', 'b2']);
  const second = buffer.getTensor('b');
  const both = buffer.getMultiCols(['a', 'b'], 0);
  const pushed = buffer.pushTensor('b2', 0);
  open(paths[0]);
  await expectTensor(buffer.getTensor('a'), 'a');
  await expectTensor(buffer.getSharded('none', 0), 'none');
  for (const each of [second, both, pushed]) expect(await isSettled(each)).toBe(false);
  open(paths[1]);
  await expectTensor(second, 'b');
  await expectTensor(pushed as typeof second, 'b2');
  const joined = await both;
  expect(Buffer.from(await joined.toHost())).toEqual(Buffer.concat([bytesOf('a'), bytesOf('b')]));
  joined.dispose();
  while (loader.report.tensors < 4) await new Promise((resolve) => setTimeout(resolve, 1));
  await loader.close();
  await expectTensor(buffer.getTensor('b'), 'b');
  await buffer.close();
});

test('the last file may come first', async () => {
  const { loader, buffer } = await begun();
  open(paths[1]);
  await expectTensor(buffer.getTensor('b2'), 'b2');
  open(paths[0]);
  await expectTensor(buffer.getTensor('a'), 'a');
  await buffer.close();
  await loader.close();
});

test('who waits is told when the load fails, and who asks later', async () => {
  const { loader, buffer } = await begun();
  const waiting = buffer.getTensor('b');
  fail(paths[0], new Error('the store is gone'));
  await expect(waiting).rejects.toThrow('the store is gone');
  await expect(buffer.getTensor('a')).rejects.toThrow('the store is gone');
  await buffer.close();
  await loader.close();
});

test.each([
  ['the buffer', ({ buffer }: Awaited<ReturnType<typeof begun>>) => buffer.close()],
  ['the loader', ({ loader }: Awaited<ReturnType<typeof begun>>) => loader.close()],
])('closing %s ends the load; tensors that were had stay', async (_, close) => {
  const both = await begun();
  open(paths[0]);
  const tensor = await both.buffer.getTensor('a');
  const waiting = both.buffer.getTensor('b');
  const refused = expect(waiting).rejects.toMatchObject({ code: 'CLOSED' });
  await close(both);
  await refused;
  await expect(both.buffer.getTensor('b')).rejects.toMatchObject({ code: 'CLOSED' });
  await both.buffer.close();
  await both.loader.close();
  expect(Buffer.from(await tensor.toHost())).toEqual(bytesOf('a'));
  tensor.dispose();
});

test.each(['loader', 'load'])('a signal of the %s ends the load with its reason', async (whose) => {
  const controller = new AbortController();
  const { signal } = controller;
  const { loader, buffer } = await begun(whose === 'loader' ? { signal } : {}, whose === 'load' ? { signal } : {});
  const waiting = buffer.getTensor('b');
  controller.abort(new Error('enough'));
  await expect(waiting).rejects.toThrow('enough');
  await expect(buffer.getTensor('a')).rejects.toThrow('enough');
  await buffer.close();
  await loader.close();
});

test('after the end of the load signals change nothing', async () => {
  const controller = new AbortController();
  const { loader, buffer } = await begun({}, { signal: controller.signal });
  for (const path of paths) open(path);
  await expectTensor(buffer.getTensor('b2'), 'b2');
  while (loader.report.tensors < 4) await new Promise((resolve) => setTimeout(resolve, 1));
  controller.abort();
  await expectTensor(buffer.getTensor('b'), 'b');
  await buffer.close();
  await loader.close();
});

test('what onProgress throws ends the load', async () => {
  let calls = 0;
  const onProgress = () => {
    if (++calls > 3) throw new Error('no more');
  };
  const { loader, buffer } = await begun({}, { onProgress });
  await expect(buffer.getTensor('b')).rejects.toThrow('no more');
  await buffer.close();
  await loader.close();
});

test.each([{}, { staging: 'always' as const }])('over the engine, %j, all bytes are right', async (options) => {
  const many = Array.from({ length: 40 }, (_, i) => entry(`t${i}`, 'U8', [4096]));
  const path = await writeModel(folder, many, 'many.safetensors');
  const loader = new SafeTensorsFileLoader({ maxBytesPerSecond: 1_000_000, bounceBufferSize: 4096, ...options });
  await loader.addFilenames(path);
  const buffer = await loader.copyFilesToDevice({ early: true });
  const first = await buffer.getTensor('t0');
  expect(nativeMetrics().hostBytes).toBeGreaterThan(0);
  first.dispose();
  for (const { name, bytes } of many) {
    const tensor = await buffer.getTensor(name);
    expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
    tensor.dispose();
  }
  await buffer.close();
  await loader.close();
});

test('no files are there early, too', async () => {
  const loader = new SafeTensorsFileLoader();
  await loader.addFilenames({ 0: [] });
  const buffer = await loader.copyFilesToDevice({ early: true });
  expect(buffer.keys()).toEqual([]);
  await buffer.close();
  await loader.close();
});
