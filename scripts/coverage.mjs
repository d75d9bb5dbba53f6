// Which lines the tests run: `npm run coverage [-- --cpp | --typescript | test files for jest]`. HTML goes to
// coverage/, a summary by folder to the terminal. Child processes of tests run dist/, which is not counted.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { buildFolder, top } from './cmake.mjs';
import { runNativeTests } from './native-tests.mjs';

const folder = join(top, 'coverage');

function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: top, encoding: 'utf8', maxBuffer: 1 << 28, ...options });
  if (result.status === 0) return result.stdout;
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
  throw new Error(`${command} failed: ${result.error?.message ?? `exit code ${result.status}`}`);
}

/** Rows {file, lines, coveredLines, functions, coveredFunctions}; jest says by itself what fails. */
function typescript(tests) {
  const jest = [join('node_modules', 'jest', 'bin', 'jest.js'), '--silent', ...tests];
  spawnSync(
    process.execPath,
    [
      ...jest,
      ...['--coverage', '--coverageDirectory', join(folder, 'typescript')],
      ...['--coverageReporters', 'html', '--coverageReporters', 'json-summary'],
      ...['--collectCoverageFrom', 'src/**/*.ts', '--collectCoverageFrom', 'adapters/**/*.ts'],
    ],
    { cwd: top, stdio: ['ignore', 'ignore', 'inherit'] },
  );
  const summary = JSON.parse(readFileSync(join(folder, 'typescript', 'coverage-summary.json'), 'utf8'));
  delete summary.total;
  return Object.entries(summary).map(([file, { lines, functions }]) => ({
    file: relative(top, file),
    ...{ lines: lines.total, coveredLines: lines.covered },
    ...{ functions: functions.total, coveredFunctions: functions.covered },
  }));
}

/** The same rows for csrc, counted by clang. */
async function cpp() {
  for (const tool of ['llvm-profdata', 'llvm-cov']) {
    if (spawnSync(tool).error) throw new Error(`${tool} is not installed (apt-get install llvm)`);
  }
  const profiles = join(buildFolder('coverage'), 'profiles');
  rmSync(profiles, { recursive: true, force: true });
  const result = await runNativeTests({ preset: 'coverage' });
  if (result.unavailable) throw new Error(`C++ tests cannot run: ${result.unavailable}`);
  const merged = join(buildFolder('coverage'), 'merged.profdata');
  const raw = readdirSync(profiles).map((name) => join(profiles, name));
  run('llvm-profdata', ['merge', '-sparse', ...raw, '-o', merged]);
  const counted = [
    join(buildFolder('coverage'), 'native_tests'),
    `-instr-profile=${merged}`,
    '-ignore-filename-regex=test/native|csrc/emulators|/usr/',
  ];
  run('llvm-cov', ['show', ...counted, '-format=html', `-output-dir=${join(folder, 'cpp')}`]);
  const { data } = JSON.parse(run('llvm-cov', ['export', ...counted, '-summary-only']));
  return data[0].files.map(({ filename, summary: { lines, functions } }) => ({
    file: relative(top, filename),
    ...{ lines: lines.count, coveredLines: lines.covered },
    ...{ functions: functions.count, coveredFunctions: functions.covered },
  }));
}

function print(rows) {
  const sums = new Map();
  for (const row of rows) {
    const parts = row.file.split('/');
    for (const name of [parts.slice(0, 2).join('/'), `${parts[0]} in all`]) {
      const sum = sums.get(name) ?? { lines: 0, coveredLines: 0, functions: 0, coveredFunctions: 0 };
      for (const key of Object.keys(sum)) sum[key] += row[key];
      sums.set(name, sum);
    }
  }
  const share = (covered, all) => (all === 0 ? '' : `${((100 * covered) / all).toFixed(1)} %`).padStart(8);
  console.log(`${'folder'.padEnd(24)}${'lines'.padStart(8)}${'covered'.padStart(9)}${'functions'.padStart(11)}`);
  for (const [name, sum] of [...sums].sort()) {
    const functions = share(sum.coveredFunctions, sum.functions).padStart(11);
    console.log(`${name.padEnd(24)}${String(sum.lines).padStart(8)} ${share(sum.coveredLines, sum.lines)}${functions}`);
  }
}

const args = process.argv.slice(2);
const only = ['--cpp', '--typescript'].find((name) => args.includes(name));
mkdirSync(folder, { recursive: true });
const rows = [
  ...(only === '--cpp' ? [] : typescript(args.filter((arg) => arg !== only))),
  ...(only === '--typescript' ? [] : await cpp()),
];
print(rows);
console.log(`HTML: ${relative(process.cwd(), folder)}/typescript/index.html and cpp/index.html`);
