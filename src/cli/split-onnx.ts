import { createRequire } from 'node:module';
import { join } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import { counted } from '../base/counted.js';
import { checkOnnxSplit } from '../models/onnx/check-split.js';
import { DEFAULT_MIN_BYTES, type OnnxSplitOptions, type OnnxSplitReport, splitOnnx } from '../models/onnx/split.js';
import { type Comparison, compareRuns } from './compare-onnx-runs.js';
import { formatBytes, printJson, printLine, printTable } from './output.js';

type Shapes = Record<string, number[]>;

interface SplitOnnxOptions extends OnnxSplitOptions {
  check?: boolean;
  shape?: Shapes;
  json?: boolean;
}

export function registerSplitOnnx(program: Command): void {
  program
    .command('split-onnx')
    .description('lift the weights of an ONNX model into a .safetensors file beside a graph that points into it')
    .argument('<model>', 'an .onnx file; it is left as it is')
    .option('--out <folder>', "where to write <model>.safetensors and <model>.split.onnx (default: the model's folder)")
    .option('--as-inputs', 'make the weights inputs of the graph instead of external data')
    .option('--min-bytes <n>', 'leave smaller tensors in the graph', wholeNumber, DEFAULT_MIN_BYTES)
    .option('--no-follow-links', "refuse links that lead out of the model's folder")
    .option(
      '--check',
      'compare every byte with the original, run both graphs with the onnxruntime-node that is installed here, ' +
        'and fail when they differ or cannot be run',
    )
    .option('--shape <name=dims>', 'shape of an input for --check, for example x=1,3,48,320; repeat for more', shape)
    .option('--json', 'print JSON')
    .action(run);
}

async function run(model: string, options: SplitOnnxOptions): Promise<void> {
  const report = await splitOnnx(model, options);
  const check = options.check
    ? { bytesCompared: await checkOnnxSplit(report), run: await compare(report, options.shape) }
    : undefined;
  // A check that could not be made did not pass.
  if (check && !('withinTolerance' in check.run && check.run.withinTolerance)) process.exitCode = 1;
  if (options.json) printJson({ ...report, check });
  else print(report, check);
}

async function compare(report: OnnxSplitReport, shapes: Shapes = {}): Promise<Comparison | { notRun: string }> {
  let ort: typeof import('onnxruntime-node');
  try {
    // From the user's folder: the package itself does not depend on a runtime.
    ort = createRequire(join(process.cwd(), 'package.json'))('onnxruntime-node');
  } catch {
    return { notRun: 'onnxruntime-node is not installed here (npm install onnxruntime-node)' };
  }
  try {
    return await compareRuns(ort, report, shapes);
  } catch (error) {
    const why = (error as Error).message.replace(/\s+/g, ' ').trim();
    return { notRun: `${why} (--shape gives inputs their shape)` };
  }
}

function print(
  report: OnnxSplitReport,
  check: { bytesCompared: number; run: Comparison | { notRun: string } } | undefined,
): void {
  const where = report.mode === 'inputs' ? 'inputs of' : 'external data of';
  printLine(`${counted(report.tensors.length, 'weight')}, ${formatBytes(report.bytes)}, now ${where} ${report.graph}`);
  printLine(`weights: ${report.weights}`);

  const groups = new Map<string, { count: number; bytes: number }>();
  for (const { reason, byteLength } of report.inline) {
    const group = groups.get(reason) ?? { count: 0, bytes: 0 };
    groups.set(reason, { count: group.count + 1, bytes: group.bytes + byteLength });
  }
  const nothing = report.inline.length === 0 ? ' nothing' : '';
  printLine(`left in the graph (floor ${report.minBytes} bytes):${nothing}`);
  printTable([...groups].map(([reason, { count, bytes }]) => ['', count, formatBytes(bytes), reason]));

  if (!check) return;
  printLine(`check: ${formatBytes(check.bytesCompared)} equal`);
  if ('notRun' in check.run) {
    printLine(`check: not run: ${check.run.notRun}`);
    return;
  }
  const verdict = check.run.withinTolerance ? '' : ', OUT OF TOLERANCE';
  printLine(`check: largest difference ${check.run.largest} on random inputs${verdict}`);
  const { notCompared, needsCreateSession } = check.run;
  if (needsCreateSession !== null)
    printLine(`check: only createSession opens the new graph, not onnxruntime-node alone: ${needsCreateSession}`);
  if (notCompared.length > 0) printLine(`check: outputs that cannot be compared: ${notCompared.join(', ')}`);
}

function wholeNumber(text: string): number {
  if (!/^\d{1,15}$/.test(text)) throw new InvalidArgumentError('expected a whole number of bytes, 0 or more');
  return Number(text);
}

function shape(text: string, previous: Shapes = {}): Shapes {
  const match = /^(.+)=(\d+(?:,\d+)*)?$/.exec(text);
  if (!match) throw new InvalidArgumentError('expected name=dims, for example x=1,3,48,320');
  return { ...previous, [match[1]!]: match[2] ? match[2].split(',').map(Number) : [] };
}
