#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command, CommanderError } from 'commander';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { packageFolder } from '../native/addon.js';
import { registerInspect } from './inspect.js';
import { registerLoad } from './load.js';
import { printError } from './output.js';
import { registerSplitOnnx } from './split-onnx.js';
import { registerSplitTfjs } from './split-tfjs.js';
import { registerVerify } from './verify.js';

/** The command line with every command; `json`: what is wrong with it is main()'s to tell. Each command lives in a file of its own. */
export function createProgram(json = false): Command {
  const program = new Command('fastsafetensors')
    .description('Looks into, checks, loads and makes .safetensors files')
    .option('--debug', 'show where an error came from')
    .version(version())
    .configureOutput({
      outputError: (text, write) => {
        if (!json) write(text.replace(/^error: /, 'error: INVALID_ARGUMENT: ')); // else main() tells
      },
    })
    // Instead of ending the process itself: output that is still under way would be lost.
    .exitOverride();
  registerInspect(program);
  registerVerify(program);
  registerLoad(program);
  registerSplitOnnx(program);
  registerSplitTfjs(program);
  return program;
}

function version(): string {
  return JSON.parse(readFileSync(join(packageFolder(), 'package.json'), 'utf8')).version;
}

/** Runs one command line. Errors become one line on stderr, or with --json an object, and exit code 1; the process ends when its work has. */
export async function main(argv: readonly string[] = process.argv): Promise<void> {
  const json = argv.includes('--json');
  const program = createProgram(json);
  try {
    await program.parseAsync(argv);
  } catch (error) {
    const style = { debug: program.opts().debug === true, json };
    process.exitCode = error instanceof CommanderError ? error.exitCode : 1;
    if (!(error instanceof CommanderError)) printError(error, style);
    // Commander has printed its own: the help that was asked for or, but for JSON, what is wrong with the command line.
    else if (json && error.exitCode !== 0)
      printError(new InvalidArgumentError(error.message.replace(/^error: /, '')), style);
  }
}

/**
 * Who reads a command's output may stop at any time (`| head`): what is left of it goes nowhere, and the command ends as it would have. Output that is lost otherwise (a
 * full disk) is an error.
 */
function outliveReaders(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    process.exitCode = 1;
    const lost = new FastSafetensorsError('IO_ERROR', `cannot write the output: ${error.message}`, { cause: error });
    printError(lost, { debug: false, json: process.argv.includes('--json') });
  });
  process.stderr.on('error', () => {}); // nobody is left to tell
}

if (require.main === module) {
  outliveReaders();
  void main();
}
