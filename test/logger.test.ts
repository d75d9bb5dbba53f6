import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AutoLoader,
  fastsafeOpen,
  type Logger,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { native } from '../src/native/addon.js';
import { expectNothingHeld } from './support/metrics.js';
import { newFolder, someEntries, writeModel } from './support/model-files.js';

// A logger of the user's that throws breaks nothing.

let folder: string;
let files: string;
beforeEach(async () => {
  folder = await newFolder();
  files = await writeModel(folder, someEntries());
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

let said: string[] = [];
const shout = (message: string): never => {
  said.push(message);
  throw new Error('the log is full');
};
const logger: Logger = { debug: shout, info: shout, warn: shout };

test('every load', async () => {
  const options = { logger, debugLog: true };
  said = [];
  for (const loader of [new ParallelLoader({ files, ...options }), new AutoLoader({ files, ...options })]) {
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
  }
  const loader = new SafeTensorsFileLoader(options);
  await loader.addFilenames(files);
  await (await loader.copyFilesToDevice()).close();
  await loader.close();
  const opened = await fastsafeOpen(files, options);
  (await opened.getTensor('weight')).dispose();
  await opened.close();
  expect(said.length).toBeGreaterThan(4);
});

test('the warning of a fallback', async () => {
  said = [];
  const loader = new ParallelLoader({ files, copier: '3fs', fallback: 'nogds', logger });
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  await loader.close();
  expect(said.join()).toContain("falls back from '3fs'");
});

test('a warning of the core, when a load or its loader ends', async () => {
  said = [];
  const warnings = jest.spyOn(native(), 'takeWarnings');
  const loader = new ParallelLoader({ files, copier: 'nogds', logger });
  warnings.mockReturnValueOnce(['no link is removed']);
  for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  expect(said).toEqual(['fastsafetensors: no link is removed']);
  warnings.mockReturnValueOnce(['nor this one']);
  await loader.close();
  expect(said.slice(1)).toEqual(['fastsafetensors: nor this one']);
  warnings.mockRestore();
});

test('the warning of a close() that waits no longer', async () => {
  said = [];
  let end = (): void => {};
  registerCopier('deaf', () => () => ({
    submitIo: () =>
      new Promise<void>((resolve) => {
        end = resolve;
      }),
    waitIo: (pending) => pending as Promise<void>,
    close: async () => {},
  }));
  const loader = new ParallelLoader({ files, copier: 'deaf', stallTimeoutMs: 30, logger });
  await expect(loader.iterateWeights().next()).rejects.toMatchObject({ code: 'STALLED' });
  await loader.close();
  end();
  expect(said.join()).toContain('has not come back');
});

test('what the configuration has to say', async () => {
  said = [];
  const config = join(folder, 'config.json');
  await writeFile(config, JSON.stringify({ base: { no_such_key: 1 } }));
  process.env.FASTSAFETENSORS_CONFIG = config;
  try {
    await new AutoLoader({ files, logger, debugLog: true }).close();
  } finally {
    delete process.env.FASTSAFETENSORS_CONFIG;
  }
  expect(said.length).toBeGreaterThan(0);
});
