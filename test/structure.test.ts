import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import ts from 'typescript';

// The order of folders is that of the pipeline, low to high: a file imports from its own folder and from lower ones. A
// new folder takes its place in one of these lists, and docs/architecture.md says what it holds.

const SRC = [
  'base',
  'native',
  'safetensors',
  'device',
  'transfer',
  'copiers',
  'loaders',
  'models',
  'doctor',
  'testing',
];
const TYPESCRIPT = [...SRC.map((name) => `src/${name}`), 'src/index', 'src/cli', 'adapters'];
const CSRC = ['base', 'convert', 'safetensors', 'device', 'reader', 'transfer', 'ort', 'tf', 'napi'];
const CPP = CSRC.map((name) => `csrc/${name}`);
/** The one arrow that goes upward: commands split and check models with the adapters. */
const allowed = (from: string, to: string) => from === 'src/cli' && to === 'adapters';

type Imports = ReadonlyMap<string, readonly string[]>;

/** The place of a file in the order: csrc/reader/gds/gds_file.cc lies in csrc/reader, src/index.mts in src/index. */
function placeOf(file: string, order: readonly string[]): string | undefined {
  return order.find((place) => file.startsWith(`${place}/`) || file.startsWith(`${place}.`));
}

/** Imports that go upward, and files outside every folder of the order. */
function upward(imports: Imports, order: readonly string[]): string[] {
  const found: string[] = [];
  for (const [file, targets] of imports) {
    const from = placeOf(file, order);
    if (!from) found.push(`${file} lies in no folder of the order`);
    for (const target of targets) {
      const to = placeOf(target, order);
      if (!to) found.push(`${file} imports ${target}, which lies in no folder of the order`);
      else if (from && order.indexOf(to) > order.indexOf(from) && !allowed(from, to))
        found.push(`${file} imports ${target}, which is higher`);
    }
  }
  return found;
}

/** The first circle found from each file, as a path that ends where it began. */
function circles(imports: Imports): string[] {
  const found: string[] = [];
  const done = new Set<string>();
  const visit = (file: string, path: readonly string[]) => {
    if (path.includes(file)) found.push([...path.slice(path.indexOf(file)), file].join(' → '));
    if (path.includes(file) || done.has(file)) return;
    for (const target of imports.get(file) ?? []) visit(target, [...path, file]);
    done.add(file);
  };
  for (const file of imports.keys()) visit(file, []);
  return found;
}

const top = join(__dirname, '..');
const list = ['ls-files', '-co', '--exclude-standard', 'src', 'adapters', 'csrc'];
const files = execFileSync('git', list, { cwd: top, encoding: 'utf8' })
  .split('\n')
  .filter((file) => file && existsSync(join(top, file)));

function importsOf(some: readonly string[], read: (file: string, text: string) => string[]): Imports {
  return new Map(some.map((file) => [file, read(file, readFileSync(join(top, file), 'utf8'))]));
}

const typescript = importsOf(
  files.filter((file) => /\.m?ts$/.test(file)),
  (file, text) =>
    ts
      .preProcessFile(text)
      .importedFiles.filter(({ fileName }) => fileName.startsWith('.'))
      .map(({ fileName }) => posix.join(posix.dirname(file), fileName.replace(/js$/, 'ts'))),
);
const cpp = importsOf(
  files.filter((file) => /\.(cc|h)$/.test(file) && !file.startsWith('csrc/emulators/')),
  (_, text) => [...text.matchAll(/^#include "(.*)"/gm)].map(([, path]) => `csrc/${path}`),
);

test('no file of src imports from a higher folder', () => {
  expect(typescript.size).toBeGreaterThan(80);
  expect(upward(typescript, TYPESCRIPT)).toEqual([]);
});

test('no file of csrc includes from a higher folder', () => {
  expect(cpp.size).toBeGreaterThan(80);
  expect(upward(cpp, CPP)).toEqual([]);
});

test('no files of src import each other in a circle', () => {
  expect(circles(typescript)).toEqual([]);
});

test('an arrow that goes upward, a folder without a place and a circle are found', () => {
  const order = ['low', 'high'];
  const imports = (entries: Record<string, string[]>) => new Map(Object.entries(entries));
  expect(upward(imports({ 'high/a': ['low/b', 'high/c'] }), order)).toEqual([]);
  expect(upward(imports({ 'low/b': ['high/a'] }), order)).toEqual(['low/b imports high/a, which is higher']);
  expect(upward(imports({ 'other/d': [] }), order)).toEqual(['other/d lies in no folder of the order']);
  expect(circles(imports({ a: ['b'], b: ['c', 'a'], c: [] }))).toEqual(['a → b → a']);
  expect(circles(imports({ a: ['b', 'c'], b: ['c'], c: [] }))).toEqual([]);
});
