import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as main from 'fastsafetensors-node';
import ts from 'typescript';
import { bytesOf, testFolder } from './support/tensor-files.js';

// The uses on docs/from-fastsafetensors.md, run as they stand there: each has at most ten lines and gives what the same
// use of fastsafetensors 0.5.0 gave, as parity/record_uses.py recorded it.

type Weights = Record<string, main.DeviceTensor | null>;
type Use = (given: object) => Promise<void>;

const TOP = join(__dirname, '..');
const PAGE = readFileSync(join(TOP, 'docs/from-fastsafetensors.md'), 'utf8').split('## Daily uses')[1]!;
const THERE: Record<string, Record<string, unknown>> = JSON.parse(
  readFileSync(join(TOP, 'fixtures/parity/uses.json'), 'utf8'),
);
/** By the name in the recording, which the text before the code has in parentheses. */
const USES = [...PAGE.matchAll(/\(`(\w+)`\)[\s\S]*?```ts\n([\s\S]*?)```/g)].map(
  ([, name, code]) => [name!, code!] as const,
);

const folder = testFolder();
const before = process.cwd();
beforeAll(() => {
  process.chdir(folder);
  const entry = (shape: number[], begin: number, end: number, dtype = 'F32') => ({ dtype, shape, begin, end });
  write('a.safetensors', { 'a.w': entry([4, 2], 0, 32), 'a.b': entry([4], 32, 48) });
  write('b.safetensors', { 'b.w': entry([4, 2], 0, 32), 'b.b': entry([3], 32, 35, 'U8') });
  writeFileSync('config.json', '{"loader":"base","base":{"copier_type":"nogds"},"parallel":{"use_pipeline":true}}');
});
afterAll(() => process.chdir(before));

function write(name: string, tensors: Record<string, { dtype: string; shape: number[]; begin: number; end: number }>) {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt', file: name } };
  for (const [tensor, { dtype, shape, begin, end }] of Object.entries(tensors)) {
    header[tensor] = { dtype, shape, data_offsets: [begin, end] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const data = Object.values(tensors).flatMap(({ begin, end }) =>
    Array.from({ length: end - begin }, (_, i) => ((begin + i) % 100) + 1),
  );
  writeFileSync(name, Buffer.concat([length, text, Buffer.from(data)]));
}

/** The code as a function of the names that it uses and does not declare. */
function compiled(code: string): Use {
  const given = ['files', 'device', 'weights', 'metadata', ...Object.keys(main)];
  const source = `export async function use({ ${given.join(', ')} }) {\n${code}}`;
  const { outputText } = ts.transpileModule(source, {
    compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.CommonJS },
  });
  const module = { exports: {} as { use: Use } };
  new Function('exports', outputText)(module.exports);
  return module.exports.use;
}

test('the page has every use', () => {
  expect(USES.map(([name]) => name)).toEqual(Object.keys(THERE));
});

test.each(USES)('%s', async (name, code) => {
  expect(code.trim().split('\n').length).toBeLessThanOrEqual(10);
  const weights: Weights = {};
  const metadata: Record<string, unknown> = {};
  if (name === 'configured') process.env.FASTSAFETENSORS_CONFIG = 'config.json';
  try {
    const files = ['a.safetensors', 'b.safetensors'];
    await compiled(code)({ ...main, files, device: 'cpu', weights, metadata });
  } finally {
    delete process.env.FASTSAFETENSORS_CONFIG;
  }
  // Tensors outlive their loader, as there.
  const here = Object.entries(weights).map(([key, tensor]) => {
    const { dtype, shape, data } = tensor!;
    return [key, [dtype, [...shape], Buffer.from(bytesOf(data)).toString('hex')]];
  });
  expect({ ...Object.fromEntries(here), ...metadata }).toEqual(THERE[name]);
  for (const tensor of Object.values(weights)) tensor!.dispose();
});
