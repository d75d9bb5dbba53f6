// Breaks the code on purpose, one row of test/mutations/ at a time, and shows that the test named there turns red:
// `npm run test:mutations [-- --only NAME] [--area AREA] [--list] [--check]`. Works in a copy of this tree, in
// build/mutations, whose C++ is built for speed of building; a row takes seconds, all of them about an hour.
// `--check` reads only: each row still fits the code. `--verbose` shows what broken tests print. `--rows FOLDER` takes
// rows from elsewhere.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const top = dirname(dirname(fileURLToPath(import.meta.url)));
const tree = join(top, 'build', 'mutations');

/** One edit of one file, or several: `find` stands exactly once in it. */
const editsOf = (row) => (row.edits ?? [row]).map(({ file = row.file, find, replace }) => ({ file, find, replace }));

/** All rows, each with its area: the name of its file in test/mutations. */
async function readRows(folder) {
  const rows = [];
  for (const name of readdirSync(folder).sort()) {
    if (!name.endsWith('.mjs')) continue;
    const { default: area, file } = await import(pathToFileURL(join(folder, name)).href);
    rows.push(...area.map((row) => ({ area: name.slice(0, -4), file, ...row })));
  }
  return rows;
}

// ---- check: rows that no longer fit the code ----

function textOf(path) {
  return existsSync(path) ? readFileSync(path, 'utf8') : undefined;
}

/** What is wrong with a row, read from the sources alone; `undefined` when nothing is. */
function faultOf(row, nativeTests) {
  for (const { file, find, replace } of editsOf(row)) {
    const text = textOf(join(top, file));
    if (text === undefined) return `${file} does not exist`;
    const times = text.split(find).length - 1;
    if (times !== 1) return `"find" stands ${times} times in ${file}, expected once: ${JSON.stringify(find)}`;
    if (find === replace) return '"replace" is the same as "find"';
  }
  if (row.native) {
    // A filter's parts between colons; the instance and the parameter of a TEST_P are not in the source.
    const missing = row.native.split(':').find((part) => {
      const name = part.split('/').find((each) => each.includes('.')) ?? part;
      const pattern = new RegExp(`^${name.replace(/[.]/g, '\\.').replace(/\*/g, '.*')}$`);
      return !nativeTests.some((each) => pattern.test(each));
    });
    return missing && `no C++ test is named ${missing}`;
  }
  const test = textOf(join(top, row.jest));
  if (test === undefined) return `${row.jest} does not exist`;
  const said = test.replaceAll("\\'", "'").includes(row.title);
  return said ? undefined : `the title ${JSON.stringify(row.title)} does not stand in ${row.jest}`;
}

function check(rows) {
  const folder = join(top, 'test', 'native');
  const sources = readdirSync(folder).filter((name) => name.endsWith('_test.cc'));
  const nativeTests = sources.flatMap((name) =>
    [...readFileSync(join(folder, name), 'utf8').matchAll(/^TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\)/gm)].map(
      ([, suite, test]) => `${suite}.${test}`,
    ),
  );
  const names = rows.map(({ name }) => name);
  const faults = rows
    .map((row, i) => [row.name, names.indexOf(row.name) === i ? faultOf(row, nativeTests) : 'the name stands twice'])
    .filter(([, fault]) => fault);
  for (const [name, fault] of faults) console.error(`rotted   ${name}: ${fault}`);
  return new Set(faults.map(([name]) => name));
}

// ---- the copy of this tree ----

/** Writes only what differs, so that builds in the copy stay incremental. */
function write(path, text) {
  if (existsSync(path) && readFileSync(path).equals(text)) return;
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

function prepareTree() {
  const git = spawnSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: top,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  const files = new Set(git.stdout.split('\0').filter((name) => name && existsSync(join(top, name))));
  for (const name of files) write(join(tree, name), readFileSync(join(top, name)));
  const list = join(tree, 'build', 'files.json');
  for (const name of existsSync(list) ? JSON.parse(readFileSync(list, 'utf8')) : []) {
    if (!files.has(name)) rmSync(join(tree, name), { force: true });
  }
  write(list, Buffer.from(JSON.stringify([...files])));
  const modules = join(tree, 'node_modules');
  if (!existsSync(modules)) symlinkSync(join(top, 'node_modules'), modules);
}

/** Ends with {code, output}, and `end` in words; after `seconds` it is killed with all it started. */
function run(command, args, seconds = 3600) {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd: tree,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (text) => {
        output = (output + text).slice(-1_000_000);
      });
    }
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      process.kill(-child.pid, 'SIGKILL');
    }, 1000 * seconds);
    child.on('error', (error) => resolve({ code: 127, output: error.message }));
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, output, end: late ? `hung for ${seconds} s` : (signal ?? `exit code ${code}`) });
    });
  });
}

/** Builds what the row's test runs; what is said when that fails, or nothing. */
async function build(row) {
  const folder = join('build', 'cmake');
  if (!existsSync(join(tree, folder, 'CMakeCache.txt'))) {
    const ninja = spawnSync('ninja', ['--version']).status === 0 ? ['-G', 'Ninja'] : [];
    const options = ['-DFST_TESTS=ON', '-DCMAKE_BUILD_TYPE=Debug', '-DCMAKE_CXX_FLAGS_DEBUG=-O1'];
    const configured = await run('cmake', ['-S', '.', '-B', folder, ...ninja, ...options]);
    if (configured.code !== 0) {
      rmSync(join(tree, folder, 'CMakeCache.txt'), { force: true });
      return configured.output;
    }
  }
  const jobs = ['--parallel', String(availableParallelism())];
  const built = await run('cmake', ['--build', folder, ...jobs, '--target', row.native ? 'native_tests' : 'all']);
  if (built.code !== 0) return built.output;
  if (row.native) return undefined;
  // For tests with child processes. What a break leaves unused is no fault of it.
  const tsc = [join('node_modules', 'typescript', 'bin', 'tsc'), '-p', '.', '--incremental'];
  const lenient = ['--noUnusedLocals', 'false', '--noUnusedParameters', 'false'];
  const compiled = await run(process.execPath, [...tsc, '--tsBuildInfoFile', 'dist/tsc.json', ...lenient]);
  return compiled.code === 0 ? undefined : compiled.output;
}

/**
 * {red, why} of the row's test on the tree as it is; {fault} when there is no such test, {skipped} where it skips
 * itself.
 */
async function runTest(row) {
  const seconds = row.timeoutS ?? (row.native ? 60 : 300);
  if (row.native) {
    const program = join('build', 'cmake', 'native_tests');
    const { code, output, end } = await run(program, [`--gtest_filter=${row.native}`], seconds);
    if (/Running 0 tests/.test(output)) return { fault: `no C++ test is named ${row.native}` };
    if (code === 0) return { red: false, skipped: /^\[ {2}PASSED {2}\] 0 tests/m.test(output) };
    const failed = /^\[ {2}FAILED {2}\] .*$/m.exec(output)?.[0].slice(13);
    return { red: true, why: failed ?? end, output };
  }
  const report = join(tree, 'build', 'report.json');
  rmSync(report, { force: true });
  const title = row.title.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  const jest = [join('node_modules', 'jest', 'bin', 'jest.js'), '--json', `--outputFile=${report}`, '--forceExit'];
  const { output, end } = await run(process.execPath, [...jest, '-t', title, '--runTestsByPath', row.jest], seconds);
  if (!existsSync(report)) return { red: true, why: end, output };
  const results = JSON.parse(readFileSync(report, 'utf8'));
  if (results.numRuntimeErrorTestSuites > 0) return { fault: `${row.jest} could not be run`, output };
  if (results.numPassedTests + results.numFailedTests === 0)
    return { fault: `no test in ${row.jest} has "${row.title}" in its name` };
  if (results.numFailedTests === 0) return { red: false };
  const failed = results.testResults.flatMap(({ assertionResults }) =>
    assertionResults.filter(({ status }) => status === 'failed').map(({ fullName }) => fullName),
  );
  return { red: true, why: `${results.numFailedTests} failed: ${failed[0]}`, output };
}

/** Names of shared memory that an emulated 3FS mount was given: broken code may leave some. */
const sharedMemory = () =>
  existsSync('/dev/shm') ? readdirSync('/dev/shm').filter((name) => /^(hf3fs-iov-|sem\.hf3fs)/.test(name)) : [];

/** Whether a process that can be looked into has it mapped: then it is somebody's who is alive. */
function isMapped(name) {
  return readdirSync('/proc').some((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/maps`, 'utf8').includes(`/dev/shm/${name}`);
    } catch {
      return false; // it has ended, or is another user's, whose names cannot be removed either
    }
  });
}

// ---- all rows ----

/** By test: null when it passes on the code as it is, else what tryRow() answers. */
const unbroken = new Map();

async function tryUnbroken(row) {
  const key = JSON.stringify([row.native, row.jest, row.title]);
  if (!unbroken.has(key)) {
    const compiles = await build(row);
    if (compiles !== undefined) throw new Error(`the code as it is does not compile:\n${compiles}`);
    let result = await runTest(row);
    if (result.red) result = await runTest(row); // a busy machine
    const fault = result.fault ?? (result.red ? `its test is red without it: ${result.why}` : undefined);
    unbroken.set(key, fault ? ['rotted', fault] : result.skipped ? ['skipped', 'its test skips itself here'] : null);
  }
  return unbroken.get(key);
}

/** [word, explanation]: 'red' is what is expected; 'GREEN', 'rotted', or 'skipped'. */
async function tryRow(row) {
  const unfit = await tryUnbroken(row);
  if (unfit) return unfit;
  const originals = new Map();
  const before = sharedMemory();
  try {
    for (const { file, find, replace } of editsOf(row)) {
      const path = join(tree, file);
      const text = readFileSync(path, 'utf8');
      if (!originals.has(path)) originals.set(path, text);
      writeFileSync(
        path,
        text.replace(find, () => replace),
      );
    }
    const compiles = await build(row);
    if (compiles !== undefined) {
      const error = /^.*\berror\b.*$/m.exec(compiles)?.[0] ?? compiles.slice(-500);
      return ['rotted', `does not compile, which is not red: ${error}`];
    }
    const { red, why, fault: broken, output } = await runTest(row);
    if (verbose && output) console.log(output.slice(-8000));
    if (broken) return ['rotted', broken];
    return red ? ['red', why] : ['GREEN', `nothing turns red in ${row.native ?? `${row.jest}, "${row.title}"`}`];
  } finally {
    for (const [path, text] of originals) writeFileSync(path, text);
    for (const name of sharedMemory()) {
      if (!before.includes(name) && !isMapped(name)) rmSync(join('/dev/shm', name), { force: true });
    }
  }
}

const { values } = parseArgs({
  options: {
    only: { type: 'string', multiple: true },
    area: { type: 'string', multiple: true },
    list: { type: 'boolean' },
    check: { type: 'boolean' },
    verbose: { type: 'boolean' },
    rows: { type: 'string' },
  },
});
const verbose = values.verbose;
const all = await readRows(values.rows ?? join(top, 'test', 'mutations'));
const rows = all.filter(
  ({ name, area }) => (values.only?.includes(name) ?? true) && (values.area?.includes(area) ?? true),
);
if (rows.length === 0) {
  console.error('no row of test/mutations has that name or area; --list shows them');
  process.exit(1);
}
if (values.list) {
  for (const row of rows)
    console.log(`${row.area}  ${row.name}  ${editsOf(row)[0].file}  ${row.native ?? `${row.jest}: ${row.title}`}`);
  process.exit(0);
}
const rotten = check(rows);
if (values.check) {
  console.log(`${rows.length - rotten.size} of ${rows.length} mutations fit the code`);
  process.exit(rotten.size === 0 ? 0 : 1);
}
prepareTree();
const counts = { red: 0, GREEN: 0, skipped: 0, rotted: rotten.size };
for (const row of rows) {
  if (rotten.has(row.name)) continue;
  const started = Date.now();
  const [word, explanation] = await tryRow(row);
  ++counts[word];
  console.log(`${word.padEnd(8)} ${row.name} (${((Date.now() - started) / 1000).toFixed(1)} s): ${explanation}`);
}
console.log(`${counts.red} red as expected, ${counts.GREEN} green, ${counts.rotted} rotted, ${counts.skipped} skipped`);
process.exit(counts.GREEN + counts.rotted > 0 ? 1 : 0);
