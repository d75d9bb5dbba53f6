import { join } from 'node:path';
import {
  copierAvailability,
  createCopierConstructor,
  fastsafeOpen,
  type LoaderOptions,
  ParallelLoader,
  registeredCopiers,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { makeCopier } from '../src/copiers/registry.js';
import { Device } from '../src/device/device.js';
import { testFolder, writeTensors } from './support/tensor-files.js';

// What takes the place of a copier that is not available, on the host; on a GPU: cuda.test.ts, from 3FS:
// three-fs.test.ts.

const folder = testFolder();
const logger = { debug() {}, info() {}, warn() {} };
let files: string[];
beforeAll(async () => {
  const tensor = (first: number) => ({ dtype: 'U8', shape: [3], data: Uint8Array.of(first, 2, 3) }) as const;
  files = [
    await writeTensors(join(folder, 'a.safetensors'), { x: tensor(1) }),
    await writeTensors(join(folder, 'b.safetensors'), { y: tensor(2) }),
  ];
});

async function reports(options: LoaderOptions): Promise<Pick<ParallelLoader['report'], 'copier' | 'fallbacks'>[]> {
  const streaming = new ParallelLoader({ files, ...options });
  const whole = new SafeTensorsFileLoader(options);
  try {
    for await (const [, tensor] of streaming.iterateWeights()) tensor.dispose();
    await whole.addFilenames(files);
    await (await whole.copyFilesToDevice()).close();
    return [streaming.report, whole.report];
  } finally {
    await streaming.close();
    await whole.close();
  }
}

describe.each(['gds', 'unified', 'fgds'])("copier '%s', which a host has not", (copier) => {
  test("falls back with fallback: 'nogds', and each file is reported once", async () => {
    for (const report of await reports({ copier, fallback: 'nogds', logger })) {
      expect(report.copier).toBe('nogds');
      const reason = expect.any(String);
      expect(report.fallbacks).toEqual(files.map((path) => ({ path, from: copier, to: 'nogds', reason })));
    }
    const opened = await fastsafeOpen(files, { copier, fallback: 'nogds', logger });
    const tensor = await opened.getTensor('x');
    expect([...(tensor.data as Uint8Array)]).toEqual([1, 2, 3]);
    tensor.dispose();
    await opened.close();
  });

  test('is COPIER_UNAVAILABLE without', async () => {
    for (const fallback of [undefined, false] as const) {
      await expect(reports({ copier, fallback })).rejects.toMatchObject({ code: 'COPIER_UNAVAILABLE' });
    }
  });
});

test("nogds wins over copier: 'gds', with and without a fallback", async () => {
  for (const fallback of [undefined, 'nogds'] as const) {
    for (const report of await reports({ copier: 'gds', nogds: true, fallback, logger })) {
      expect(report).toMatchObject({ copier: 'nogds', fallbacks: [] });
    }
  }
  for (const device of ['cpu', 'cuda']) {
    expect(makeCopier('gds', Device.parse(device), { nogds: true })).toMatchObject({ reader: { kind: 'file' } });
  }
  createCopierConstructor('gds', 'cpu', { nogds: true });
});

test('FGDS can be asked for and is not there', async () => {
  expect(registeredCopiers()).not.toContain('fgds');
  const { available, reason, remedy } = await copierAvailability('fgds', 'cuda:0');
  expect([available, reason, remedy]).toEqual([false, expect.stringContaining('FGDS'), expect.stringContaining('gds')]);
  expect(() => createCopierConstructor('fgds', 'cpu')).toThrow(expect.objectContaining({ code: 'COPIER_UNAVAILABLE' }));
});

test.each([
  ['1', undefined, true],
  ['true', 'auto', true],
  ['1', false, false],
  ['0', undefined, false],
  ['false', 'auto', false],
  ['0', true, true],
] as const)('FASTSAFETENSORS_ODIRECT=%s with odirect: %s reads past the page cache: %s', (value, odirect, direct) => {
  process.env.FASTSAFETENSORS_ODIRECT = value;
  try {
    for (const copier of ['nogds', 'unified']) {
      expect(makeCopier(copier, Device.parse('cpu'), { odirect })).toMatchObject({ reader: { direct } });
    }
  } finally {
    delete process.env.FASTSAFETENSORS_ODIRECT;
  }
});

test('FASTSAFETENSORS_ODIRECT loads', async () => {
  process.env.FASTSAFETENSORS_ODIRECT = '1';
  try {
    for (const { copier } of await reports({ logger })) expect(copier).toBe('nogds');
  } finally {
    delete process.env.FASTSAFETENSORS_ODIRECT;
  }
});
