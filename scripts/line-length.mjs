// Finds lines of more than 120 columns in sources, scripts and Markdown. Longer may be the rows of tables in Markdown,
// and any line with a word (an address, say) that is too long by itself.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { top } from './cmake.mjs';

const COLUMNS = 120;
const SOURCES = /\.(cc|h|ts|mts|mjs|cjs|js|py|md|txt|yml|yaml)$|^\.ci\/run$/;

const list = ['ls-files', '-co', '--exclude-standard', ':!fixtures/**', ':!test/native/cuda_behaviour.txt'];
const files = spawnSync('git', list, { cwd: top, encoding: 'utf8' })
  .stdout.split('\n')
  .filter((file) => SOURCES.test(file) && existsSync(join(top, file)));
let found = 0;
for (const file of files) {
  readFileSync(join(top, file), 'utf8')
    .split('\n')
    .forEach((line, i) => {
      const length = [...line].length;
      const excepted =
        (file.endsWith('.md') && line.startsWith('|')) ||
        line.split(/\s+/).some((word) => [...word].length > COLUMNS - 8);
      if (length <= COLUMNS || excepted) return;
      console.log(`${file}:${i + 1}: ${length} columns, expected at most ${COLUMNS}`);
      ++found;
    });
}
console.log(`line length: ${files.length} files, ${found} lines too long`);
process.exit(found > 0 ? 1 : 0);
