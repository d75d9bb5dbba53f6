import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { testFolder } from './support/tensor-files.js';

// What scripts/mutations.mjs reads from the sources; that each break turns its test red, `npm run test:mutations`
// shows.

const script = join(__dirname, '..', 'scripts', 'mutations.mjs');
const folder = testFolder();

function check(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, '--check', ...args], { encoding: 'utf8' });
  return { status, stdout, said: stderr.trim().split('\n') };
}

test('every row of test/mutations fits the code and names a test', () => {
  const { status, said } = check();
  expect({ status, said }).toEqual({ status: 0, said: [''] });
});

test('a row that no longer fits is named, with what is wrong', () => {
  const row = { find: '"license": "Apache-2.0"', replace: '', native: 'EngineTest.OneSlotIsEnough' };
  const jest = { native: undefined, jest: 'test/metadata.test.ts' };
  const rows = [
    { name: 'gone', ...row, find: 'no such text' },
    { name: 'twice', ...row, find: '"' },
    { name: 'nothing', ...row, replace: row.find },
    { name: 'no-file', ...row, file: 'csrc/no.cc' },
    { name: 'no-test', ...row, native: 'EngineTest.NoSuchTest' },
    { name: 'no-title', ...row, ...jest, title: 'no such title' },
    { name: 'same', ...row },
    { name: 'same', ...row },
    { name: 'fits', ...row, ...jest, title: 'a misspelled option is named beside the right one' },
  ];
  const text = `export const file = 'package.json';\nexport default ${JSON.stringify(rows)};\n`;
  writeFileSync(join(folder, 'rows.mjs'), text);
  const { status, stdout, said } = check('--rows', folder);
  expect(status).toBe(1);
  expect(said.map((line) => line.replace(/\s+/g, ' '))).toEqual([
    'rotted gone: "find" stands 0 times in package.json, expected once: "no such text"',
    expect.stringMatching(/^rotted twice: "find" stands \d+ times/),
    'rotted nothing: "replace" is the same as "find"',
    'rotted no-file: csrc/no.cc does not exist',
    'rotted no-test: no C++ test is named EngineTest.NoSuchTest',
    'rotted no-title: the title "no such title" does not stand in test/metadata.test.ts',
    'rotted same: the name stands twice',
  ]);
  expect(stdout).toMatch(/of 9 mutations fit the code/);
});
