// Tests of the package as users get it: `npm run test:package [-- part of a cell's name …]`. Packs a clone of
// HEAD, and runs each cell of test/package/cells against it: package managers, versions of Node, bundlers, compilers,
// the examples. Each says in a line what ran; one that cannot run here says why. `--list` prints the names, `--quick`
// packs this tree itself, whose binary needs no second compilation, and leaves out what takes long.
import { spawnSync } from 'node:child_process';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { bundlers } from '../test/package/cells/bundlers.mjs';
import { emulators } from '../test/package/cells/emulators.mjs';
import { examples } from '../test/package/cells/examples.mjs';
import { installs } from '../test/package/cells/installs.mjs';
import { runtimes } from '../test/package/cells/runtimes.mjs';
import { types } from '../test/package/cells/types.mjs';
import { Skip } from '../test/package/run.mjs';
import { Stage } from '../test/package/stage.mjs';
import { installTools } from '../test/package/tools.mjs';

const top = dirname(dirname(fileURLToPath(import.meta.url)));
const AT_ONCE = 2;

const args = process.argv.slice(2);
const cells = [...installs, ...runtimes, ...bundlers, ...types, ...emulators, ...examples];
const wanted = args.filter((arg) => !arg.startsWith('--'));
const named = cells.filter(({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)));
const quick = args.includes('--quick');
const chosen = named.filter(({ long }) => !(quick && long));
if (args.includes('--list')) {
  for (const { name } of cells) console.log(name);
  process.exit(0);
}
if (chosen.length === 0) {
  console.error(`no cell is named like ${wanted.join(' or ')}; --list prints the names`);
  process.exit(1);
}

const stage = new Stage(top);
process.on('exit', () => stage.close());
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

const started = performance.now();
const since = (begin) => `${((performance.now() - begin) / 1000).toFixed(1).padStart(6)} s`;
const count = { ok: 0, skipped: 0, FAILED: 0 };

async function runCell(cell) {
  const begin = performance.now();
  let verdict = 'ok';
  let what;
  try {
    what = await cell.run(stage);
  } catch (error) {
    verdict = error instanceof Skip ? 'skipped' : 'FAILED';
    what = error instanceof Skip ? error.message : (error.stack ?? String(error));
  }
  ++count[verdict];
  console.log(`${verdict.padEnd(7)} ${since(begin)}  ${cell.name}: ${what}`);
}

const leftOut = named.filter((cell) => !chosen.includes(cell)).map(({ name }) => name);
if (quick) console.log(`package: --quick packs this tree itself, and leaves out: ${leftOut.join(', ') || 'nothing'}`);
const dirty = spawnSync('git', ['status', '--porcelain'], { cwd: top, encoding: 'utf8' }).stdout.trim();
if (dirty && !quick) console.log('package: HEAD is packed; changes that are not committed are not in it');
const tools = wanted.length === 0 ? installTools(top) : undefined;
const packed = await stage.pack(!quick);
await tools;
console.log(
  `packed  ${since(started)}  ${packed.filename}: ${packed.entryCount} files, ${(packed.size / 1e6).toFixed(2)} MB`,
);

// Those whose times are compared run alone, then the others, some at a time.
for (const cell of chosen.filter(({ alone }) => alone)) await runCell(cell);
const left = chosen.filter(({ alone }) => !alone);
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let cell = left.shift(); cell; cell = left.shift()) await runCell(cell);
  }),
);
const counts = Object.entries(count).map(([verdict, cells]) => `${cells} ${verdict}`);
console.log(`package: ${counts.join(', ')} in ${since(started).trim()}`);
process.exitCode = count.FAILED > 0 ? 1 : 0;
