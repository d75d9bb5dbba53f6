import { type Command, InvalidArgumentError } from 'commander';
import { counted } from '../base/counted.js';
import { checkTfjsSplit } from '../models/tfjs/check-split.js';
import { DEFAULT_SHARD_BYTES, splitTfjs, type TfjsSplitOptions } from '../models/tfjs/split.js';
import { formatBytes, printJson, printLine } from './output.js';

interface SplitTfjsOptions extends TfjsSplitOptions {
  check?: boolean;
  json?: boolean;
}

export function registerSplitTfjs(program: Command): void {
  program
    .command('split-tfjs')
    .description('turn the shards of a TensorFlow.js model into .safetensors beside a model.json without weights')
    .argument('<model>', 'a model.json; it is left as it is')
    .option('--out <folder>', "where to write <model>.safetensors and <model>.split.json (default: the model's folder)")
    .option('--max-shard-bytes <n>', 'split the weights into files of this size', bytes, DEFAULT_SHARD_BYTES)
    .option('--no-follow-links', "refuse links that lead out of the model's folder")
    .option('--check', 'read everything again and compare every byte with the original')
    .option('--json', 'print JSON')
    .action(run);
}

async function run(model: string, { check, json, ...options }: SplitTfjsOptions): Promise<void> {
  const report = await splitTfjs(model, options);
  const bytesCompared = check ? await checkTfjsSplit(report) : undefined;
  if (json) return printJson({ ...report, check: check ? { bytesCompared } : undefined });
  printLine(`${counted(report.tensors, 'weight')}, ${formatBytes(report.bytes)}, now beside ${report.graph}`);
  printLine(`weights: ${report.weights}`);
  if (report.files.length > 1) for (const file of report.files) printLine(`         ${file}`);
  if (bytesCompared !== undefined) printLine(`check: ${formatBytes(bytesCompared)} equal`);
}

function bytes(text: string): number {
  if (!/^[1-9]\d{0,14}$/.test(text)) throw new InvalidArgumentError('expected a whole number of bytes, 1 or more');
  return Number(text);
}
