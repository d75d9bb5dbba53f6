import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as testing from 'fastsafetensors-node/testing';
import * as main from '../src/index.js';

// docs/from-fastsafetensors.md has every public name of fastsafetensors, as parity/record_names.py found them, and what
// it says is here is in the code.

interface Described {
  readonly members?: readonly string[];
  readonly parameters: readonly string[];
}
const TOP = join(__dirname, '..');
const read = (path: string) => readFileSync(join(TOP, path), 'utf8');
const RECORDED: Record<string, Record<string, Described>> = JSON.parse(read('fixtures/parity/names.json'));
const PAGE = read('docs/from-fastsafetensors.md');

/** The two cells of each row; `there` has Python's names. */
const ROWS = [...PAGE.matchAll(/^\| (.*?) +\| (.*?) +\|$/gm)]
  .map(([, there, here]) => ({ there: there!, here: here! }))
  .filter(({ there }) => !/^(-+|there|environment there)$/.test(there));
const quoted = (cell: string) => [...cell.matchAll(/`([^`]+)`/g)].map(([, text]) => text!);
const THERE = new Set(ROWS.flatMap(({ there }) => quoted(there)));

/** Whose arguments users give; those of other classes are made by the package. */
const CALLED = /Loader$|^fastsafe_open$|copier_constructor$|Reader|^create_reader$|^FilesBufferOnDevice$/;
/** Of constructors that only the package calls, of its keys in the file (another page), of decorators. */
const INTERNAL = ['rank_loaders', 'auto_mem_delete', 'copier_class'];

test.each(Object.entries(RECORDED))('every name of %s has a row', (module, names) => {
  expect(Object.keys(names).length).toBeGreaterThan(5);
  const missing = Object.entries(names).flatMap(([name, { members = [], parameters }]) => {
    const keys = name === 'LoaderConfig' ? read('docs/configuration.md') : '';
    const wanted = [name, ...members, ...(CALLED.test(name) ? parameters : [])];
    return wanted.filter((one) => !THERE.has(one) && !INTERNAL.includes(one) && !keys.includes(`\`${one}\``));
  });
  expect([module, [...new Set(missing)]]).toEqual([module, []]);
});

test('what is said to be here is in the code', () => {
  const sources = ['src', 'adapters'].flatMap((folder) =>
    readdirSync(join(TOP, folder), { recursive: true, encoding: 'utf8' })
      .filter((path) => path.endsWith('.ts') && !path.endsWith('python-names.ts'))
      .map((path) => read(join(folder, path))),
  );
  const words = new Set([...sources.join('\n').matchAll(/[A-Za-z_]\w*/g)].map(([word]) => word));
  words.add('HF3FS_LIB_DIR').add('FASTSAFETENSORS_3FS_LIB').add('ValueError');
  expect(ROWS.length).toBeGreaterThan(80);
  for (const { here } of ROWS) {
    const named = quoted(here).flatMap((text) => text.match(/[A-Za-z_]\w*/g) ?? []);
    expect([here, named.filter((word) => !words.has(word))]).toEqual([here, []]);
  }
});

test('functions and classes that are the same but for their spelling are exported', () => {
  const camelCase = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
  const exported: Record<string, unknown> = { ...main, ...testing };
  for (const { there, here } of ROWS) {
    const same = quoted(there).filter((name) => Object.values(RECORDED).some((names) => name in names));
    for (const name of same) {
      if (quoted(here).includes(camelCase(name)))
        expect([name, typeof exported[camelCase(name)]]).toEqual([name, 'function']);
    }
  }
});
