import type { Command } from 'commander';
import { doctor } from '../index.js';
import { linesOf, printJson, printLine } from './output.js';

export function registerDoctor(program: Command): void {
  program
    .command('doctor')
    .description('say what is there of addon, GPUs, 3FS, limits and frameworks; exit code 1 when something is broken')
    .argument('[folder]', 'where models lie, to try what its file system can do; default: that of temporary files')
    .option('--json', 'print JSON')
    .action(run);
}

async function run(folder: string | undefined, { json }: { json?: boolean }): Promise<void> {
  const report = await doctor(folder === undefined ? {} : { folder });
  if (!report.ok) process.exitCode = 1;
  if (json) return printJson(report);
  const width = Math.max(...report.checks.map(({ name }) => name.length));
  for (const { name, state, detail, remedy } of report.checks) {
    const indent = ' '.repeat('missing'.length + width + 4);
    const [first, ...rest] = linesOf(detail);
    printLine(`${state.padEnd('missing'.length)}  ${name.padEnd(width)}  ${first}`);
    for (const line of rest) printLine(`${indent}${line.trimStart()}`);
    if (remedy)
      for (const [i, line] of remedy.split('\n').entries()) printLine(`${indent}${i === 0 ? '→' : ' '} ${line}`);
  }
}
