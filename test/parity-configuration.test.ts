import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoLoader, FastSafetensorsError, type Logger } from 'fastsafetensors-node';
import { configOptions, readConfig } from '../src/loaders/config.js';
import { bytesOf, testFolder, writeTensors } from './support/tensor-files.js';

// Each configuration of fastsafetensors' guide, and more that it reads, does here what it does there. What it does
// there was recorded from fastsafetensors 0.5.0 itself, on a machine without GPUs: see parity/record.py. Where this
// package differs, DIFFERENCES says so and why; any other difference is a failure, and so is one that is gone.

type Answer = Record<string, unknown>;
const recordedIn = (path: string) => JSON.parse(readFileSync(join(__dirname, path), 'utf8'));
const QUESTIONS: Record<string, unknown> = recordedIn('parity/configurations.json');
const THERE: { fastsafetensors: string; answers: Record<string, Answer> } = recordedIn(
  '../fixtures/parity/configurations.json',
);

const SILENT = 'use_pipeline is neither true nor false in the file: this package loads ahead then, which is faster';
const NO_BAR = 'a bar is drawn where it is asked for: there it is drawn by default';
const BAR_OBEYED = 'use_tqdm_on_load counts without a pipeline, too: there it is ignored then';
const NO_SUCH_COPIER = 'a misspelled copier_type is an error: there it is nogds';

interface Difference {
  readonly there: unknown;
  readonly here: unknown;
  readonly why: string;
}
const silent: Record<string, Difference> = { queueSize: { there: -1, here: 0, why: SILENT } };
const noBar: Record<string, Difference> = { progress: { there: true, here: false, why: NO_BAR } };

/** By configuration and what it decides; those that say neither use_pipeline nor a bar are in BOTH_SILENT. */
const DIFFERENCES: Record<string, Record<string, Difference>> = {
  'guide: the defaults written out': noBar,
  'no pipeline, then a queue': noBar,
  'a queue, then no pipeline': noBar,
  'a pipeline, then a queue': noBar,
  'a queue, then a pipeline': noBar,
  'a pipeline alone': noBar,
  'a pipeline with a serial queue': noBar,
  'a queue alone': { queueSize: { there: -1, here: 4, why: SILENT }, ...noBar },
  'keys in the other group': noBar,
  'flat, then in a group': noBar,
  'in a group, then flat': noBar,
  'no bar, without a pipeline': { progress: { there: true, here: false, why: BAR_OBEYED } },
  'a copier that there is none of': { refused: { there: false, here: 'UNKNOWN_COPIER', why: NO_SUCH_COPIER } },
};
const BOTH_SILENT = [
  'guide: no file',
  'guide: base with gds',
  'guide: 3fs',
  'an empty file',
  'copier nogds',
  'copier unified',
  'copier fgds',
  'copier fgds by its flag',
  'copier nogds and the flag of fgds',
  'copier 3fs of the base loader',
  'gds with nogds',
  'numbers of the base loader',
  'common keys in the section of a loader',
  'the cache of shuffled tensors on',
  'numa off',
  'framework torch',
  'framework pt',
  'batches',
  'no batches',
  'a budget',
  'allocation by chunk budgets',
  '3fs without a mount point',
  '3fs with an empty mount point',
  '3fs with a blank mount point',
  'unknown fields',
  'a number for a section',
];
for (const name of BOTH_SILENT) DIFFERENCES[name] = { ...silent, ...noBar };

/** Copiers that there cannot be on a machine without GPUs: what falls back to nogds is reported here. */
const REPORTED: Record<string, string> = {
  'guide: base with gds': 'gds',
  'guide: full reference': 'gds',
  'copier unified': 'unified',
  'copier fgds': 'fgds',
  'copier fgds by its flag': 'fgds',
  'copier 3fs of the base loader': '3fs',
};

const folder = testFolder();
const before = { cwd: process.cwd(), variable: process.env.FASTSAFETENSORS_CONFIG };
let files: string[];
beforeAll(async () => {
  const bytes = (first: number, count: number) => Uint8Array.from({ length: count }, (_, i) => first + i);
  files = [
    await writeTensors(join(folder, 'a.safetensors'), {
      x: { dtype: 'F32', shape: [4], data: bytes(1, 16) },
      y: { dtype: 'U8', shape: [3], data: bytes(17, 3) },
    }),
    await writeTensors(join(folder, 'b.safetensors'), { z: { dtype: 'I64', shape: [2, 2], data: bytes(20, 32) } }),
  ];
});
beforeEach(() => {
  process.chdir(folder);
  delete process.env.FASTSAFETENSORS_CONFIG;
  rmSync('fastsafetensors.json', { force: true });
});
afterEach(() => {
  process.chdir(before.cwd);
  if (before.variable !== undefined) process.env.FASTSAFETENSORS_CONFIG = before.variable;
});

/** The reader of the 3FS loaders, as the mock that the recording was made with. */
const reader = {
  async readChunked(
    path: string,
    destination: { write(at: number, bytes: Uint8Array): Promise<void> },
    from: number,
    n: number,
  ) {
    await destination.write(0, readFileSync(path).subarray(from, from + n));
    return n;
  },
};

const logger: Logger = { debug() {}, info() {}, warn() {} };

async function ask(config: unknown): Promise<{ answer: Answer; fallbacks: { from: string; to: string }[] }> {
  if (config !== null) writeFileSync('fastsafetensors.json', JSON.stringify(config));
  const over3fs = (config as { loader?: unknown } | null)?.loader === '3fs';
  try {
    const options = configOptions(readConfig({}, () => {}));
    const loader = new AutoLoader({ files, logger, ...(over3fs && { reader }) });
    const tensors: Record<string, string> = {};
    for await (const [name, tensor] of loader.iterateWeights()) {
      tensors[name] = Buffer.from(bytesOf(tensor.data)).toString('hex');
      tensor.dispose();
    }
    await loader.close();
    const { copier, fallbacks } = loader.report;
    const { queueSize = 0, progress = false, maxBatchBytes = null, debugLog = false, setNuma = true } = options;
    const made: Answer = { queueSize, progress, maxBatchBytes, debugLog, setNuma, copier };
    for (const name of ['bounceBufferSize', 'maxThreads', 'mountPoint', 'entries', 'ioDepth', 'bufferSize'] as const) {
      if (options[name] !== undefined) made[name] = options[name];
    }
    return { answer: { ...made, tensors }, fallbacks };
  } catch (error) {
    if (!(error instanceof FastSafetensorsError)) throw error;
    return { answer: { refused: error.code }, fallbacks: [] };
  }
}

/** What two answers do not have in common; blank and missing mount points mean the same: that of the files. */
function differences(there: Answer, here: Answer): Record<string, { there: unknown; here: unknown }> {
  if (there.refused && here.refused) return {};
  const found: Record<string, { there: unknown; here: unknown }> = {};
  if (there.refused || here.refused) {
    return { refused: { there: there.refused ?? false, here: here.refused ?? false } };
  }
  const plain = (value: unknown) => (typeof value === 'string' ? value.trim() || undefined : value);
  for (const name of new Set([...Object.keys(there), ...Object.keys(here)])) {
    const [a, b] = [plain(there[name]), plain(here[name])];
    if (JSON.stringify(a) !== JSON.stringify(b)) found[name] = { there: there[name], here: here[name] };
  }
  return found;
}

test('every question was answered, and every difference is of one', () => {
  expect(Object.keys(THERE.answers)).toEqual(Object.keys(QUESTIONS));
  expect(Object.keys(QUESTIONS)).toEqual(
    expect.arrayContaining([...Object.keys(DIFFERENCES), ...Object.keys(REPORTED)]),
  );
  expect(THERE.fastsafetensors).toBe('0.5.0');
});

test.each(Object.entries(QUESTIONS))('%s', async (name, config) => {
  const { answer, fallbacks } = await ask(config);
  const expected = Object.entries(DIFFERENCES[name] ?? {}).map(([what, { there, here }]) => [what, { there, here }]);
  expect(differences(THERE.answers[name]!, answer)).toEqual(Object.fromEntries(expected));
  const from = REPORTED[name];
  const reported = from ? files.map((path) => ({ path, from, to: 'nogds', reason: expect.any(String) })) : [];
  expect(fallbacks).toEqual(reported);
});
