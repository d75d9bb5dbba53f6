#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command, CommanderError } from 'commander';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { removedOnSignals } from '../base/temporary.js';
import { packageFolder } from '../native/addon.js';
import { registerChecksum } from './checksum.js';
import { registerConvert } from './convert.js';
import { registerDoctor } from './doctor.js';
import { registerInspect } from './inspect.js';
import { registerLoad } from './load.js';
import { registerMerge } from './merge.js';
import { printError } from './output.js';
import { registerReshard } from './reshard.js';
import { registerSplitOnnx } from './split-onnx.js';
import { registerSplitTfjs } from './split-tfjs.js';
import { registerVerify } from './verify.js';

/** The command line with every command, each in a file of its own. `json`: main() reports what is wrong with it. */
function createProgram(json = false): Command {
  const program = new Command('fastsafetensors-node')
    .description('Looks into, checks, loads and makes .safetensors files')
    .option('--debug', 'show where an error came from')
    .version(version())
    .configureOutput({
      outputError: (text, write) => {
        if (!json) write(text.replace(/^error: /, 'error: INVALID_ARGUMENT: '));
      },
    })
    // Commander would end the process itself, and lose output that is not written yet.
    .exitOverride();
  registerInspect(program);
  registerVerify(program);
  registerChecksum(program);
  registerLoad(program);
  registerReshard(program);
  registerConvert(program);
  registerMerge(program);
  registerSplitOnnx(program);
  registerSplitTfjs(program);
  registerDoctor(program);
  return program;
}

function version(): string {
  return JSON.parse(readFileSync(join(packageFolder(), 'package.json'), 'utf8')).version;
}

/** Runs one command line. Errors are printed to stderr, with --json as an object, and make the exit code 1. */
export async function main(argv: readonly string[] = process.argv): Promise<void> {
  const json = argv.includes('--json');
  const program = createProgram(json);
  try {
    await program.parseAsync(argv);
  } catch (error) {
    const style = { debug: program.opts().debug === true, json };
    process.exitCode = error instanceof CommanderError ? error.exitCode : 1;
    if (!(error instanceof CommanderError)) printError(error, style);
    // Commander has printed its own: help that was asked for or, without --json, what is wrong with the command line.
    else if (json && error.exitCode !== 0)
      printError(new InvalidArgumentError(error.message.replace(/^error: /, '')), style);
  }
}

/**
 * The reader of a command's output may stop at any time (`| head`): the rest is dropped, and the command ends as it
 * would have. Output that is lost otherwise, as on a full disk, is an error.
 */
function outliveReaders(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    process.exitCode = 1;
    const lost = new FastSafetensorsError('IO_ERROR', `cannot write the output: ${error.message}`, { cause: error });
    printError(lost, { debug: false, json: process.argv.includes('--json') });
  });
  process.stderr.on('error', () => {}); // nobody is left to hear of it
}

if (require.main === module) {
  removedOnSignals();
  outliveReaders();
  void main();
}
