#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { FastSafetensorsError } from '../errors.js';
import { registerInspect } from './inspect.js';
import { registerLoad } from './load.js';
import { printError } from './output.js';
import { registerSplitOnnx } from './split-onnx.js';
import { registerSplitTfjs } from './split-tfjs.js';
import { registerVerify } from './verify.js';

/** The command line with every command. Each command lives in a file of its own. */
export function createProgram(): Command {
  const program = new Command('fastsafetensors')
    .description('Looks into, checks, loads and makes .safetensors files')
    .option('--debug', 'show where an error came from')
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'error: INVALID_ARGUMENT: ')) })
    // Instead of ending the process itself: output that is still under way would be lost.
    .exitOverride();
  registerInspect(program);
  registerVerify(program);
  registerLoad(program);
  registerSplitOnnx(program);
  registerSplitTfjs(program);
  return program;
}

/** Runs one command line. Errors become one line on stderr and exit code 1; the process ends when its work has. */
export async function main(argv: readonly string[] = process.argv): Promise<void> {
  const program = createProgram();
  try {
    await program.parseAsync(argv);
  } catch (error) {
    // Commander has printed its own: a misspelled option, or the help that was asked for.
    if (!(error instanceof CommanderError)) printError(error, program.opts().debug === true);
    process.exitCode = error instanceof CommanderError ? error.exitCode : 1;
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
    printError(
      new FastSafetensorsError('IO_ERROR', `cannot write the output: ${error.message}`, { cause: error }),
      false,
    );
  });
  process.stderr.on('error', () => {}); // nobody is left to tell
}

if (require.main === module) {
  outliveReaders();
  void main();
}
