import { rm } from 'node:fs/promises';
import {
  fastsafeOpen,
  type LoaderOptions,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { expectClean } from './support/child.js';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';
import { userCopier } from './support/read-back.js';

// Time: limits longer than a timer can count, and the fake timers of an application's tests.

registerCopier('slow mock', mockCopier({ delayMs: 30 }));
registerCopier('user', userCopier);

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(
    folder,
    Array.from({ length: 6000 }, (_, i) => entry(`tensor ${i}`, 'U8', [16])),
  );
});
afterEach(async () => {
  jest.useRealTimers();
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

async function count(files: string, options: LoaderOptions): Promise<number> {
  const loader = new ParallelLoader({ files, ...options });
  let tensors = 0;
  for await (const [, tensor] of loader.iterateWeights()) {
    tensor.dispose();
    ++tensors;
  }
  await loader.close();
  return tensors;
}

test.each([2 ** 31 - 1, 2 ** 31, 1e12, Number.MAX_VALUE, Number.POSITIVE_INFINITY])(
  'limits of %p ms end nothing',
  async (ms) => {
    const few = await writeModel(
      folder,
      Array.from({ length: 9 }, (_, i) => entry(`${i}`, 'U8', [16])),
      'few.safetensors',
    );
    for (const copier of ['slow mock', 'nogds'])
      expect(await count(few, { copier, timeoutMs: ms, stallTimeoutMs: ms })).toBe(9);
  },
);

test.each([2 ** 31, Number.POSITIVE_INFINITY])(
  'close() waits for what is in flight with a limit of %p ms',
  async (ms) => {
    const warnings: string[] = [];
    const logger = { debug() {}, info() {}, warn: (message: string) => void warnings.push(message) };
    let ended = false;
    let begin = (): void => {};
    const begun = new Promise<void>((resolve) => {
      begin = resolve;
    });
    registerCopier('deaf', () => () => ({
      submitIo: async () => {
        begin();
        await new Promise((resolve) => setTimeout(resolve, 60));
        ended = true;
      },
      waitIo: (pending) => pending as Promise<void>,
      close: async () => {},
    }));
    const loader = new ParallelLoader({ files: path, copier: 'deaf', stallTimeoutMs: ms, logger });
    const next = loader.iterateWeights().next();
    next.catch(() => {});
    await begun;
    await loader.close();
    await expect(next).rejects.toMatchObject({ code: 'CLOSED' });
    expect({ ended, warnings }).toEqual({ ended: true, warnings: [] });
  },
);

test.each(['nogds', 'user'])('an application’s fake timers stop nothing, %s', async (copier) => {
  jest.useFakeTimers();
  for (const order of ['file', 'ready'] as const) {
    const loader = new ParallelLoader({ files: path, copier, order, filter: () => true, onProgress: () => {} });
    let tensors = 0;
    for await (const [, tensor] of loader.iterateWeights()) {
      tensor.dispose();
      ++tensors;
    }
    expect(tensors).toBe(6000);
    await loader.close();
  }
  const loader = new SafeTensorsFileLoader({ copier, onProgress: () => {} });
  await loader.addFilenames(path);
  await (await loader.copyFilesToDevice()).close();
  await loader.close();
  const opened = await fastsafeOpen(path, { copier });
  (await opened.getTensor('tensor 1')).dispose();
  await opened.close();
});

test('nor do those of node:test', async () => {
  await expectClean('timers.child.cjs', ['all'], { flags: ['--disable-warning=ExperimentalWarning'] });
});
