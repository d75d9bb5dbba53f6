import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { onnxruntime } from '../adapters/ort/index.js';
import { formatBytes, formatRate, printLine, printTable } from '../src/cli/output.js';
import { type CopierType, getHf3fsLibPath, type LoadReport, ParallelLoader } from '../src/index.js';
import { compareOutputs, type Difference } from '../src/models/onnx/compare-outputs.js';
import { splitOnnx } from '../src/models/onnx/split.js';
import { emulators } from '../src/testing/index.js';
import { type ExampleModel, MODELS } from './models.js';

const SHOWN = ['silero-vad op18 ifless', 'silero-vad half', 'PP-OCRv4 recogniser'];

interface Result {
  model: string;
  /** The graph takes its weights as inputs, and gets the tensors that the pipeline loaded. */
  inputs: Difference;
  /** The graph points into the .safetensors file itself: its outputs have to be the same bits. */
  externalData: Difference;
  report: LoadReport;
}

/** What every model goes through: split → load → feed without a copy → the same results as the original. */
async function run(model: ExampleModel, folder: string, copier: CopierType): Promise<Result> {
  const feeds = Object.fromEntries(
    Object.entries(model.feeds()).map(([name, { type, data, dims }]) => [name, new ort.Tensor(type, data, dims)]),
  );
  const expected = await infer(model.file, feeds);

  const pointing = await splitOnnx(model.file, { out: folder });
  const externalData = compareOutputs(await infer(pointing.graph, feeds), expected);

  const taking = await splitOnnx(model.file, { out: folder, asInputs: true });
  const loader = new ParallelLoader({ files: taking.weights, copier, framework: onnxruntime(ort) });
  const weights: Record<string, ort.Tensor> = {};
  try {
    for await (const [name, tensor] of loader.iterateWeights()) weights[name] = tensor;
    const inputs = compareOutputs(await infer(taking.graph, { ...feeds, ...weights }), expected);
    return { model: model.name, inputs, externalData, report: loader.report };
  } finally {
    await loader.close();
  }
}

async function infer(model: string, feeds: Record<string, ort.Tensor>) {
  // Level 3: errors only. Silero's graphs make the runtime warn about unused initializers.
  const session = await ort.InferenceSession.create(model, { logSeverityLevel: 3 });
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

/** Where no 3FS client is installed, its emulator serves the folder, so that the copier '3fs' can be seen at work. */
async function emulate3fs(folder: string): Promise<boolean> {
  if (getHf3fsLibPath() !== null) return false;
  Object.assign(process.env, emulators.hf3fs.env());
  await mkdir(join(folder, '3fs-virt', 'iovs'), { recursive: true });
  return true;
}

async function main(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'fastsafetensors-demo-'));
  const results: Result[] = [];
  const shown = MODELS.filter(({ name }) => SHOWN.includes(name));
  const copiers: CopierType[] = ['nogds'];
  try {
    const emulated = await emulate3fs(folder);
    if (emulated) copiers.unshift('3fs');
    for (const model of shown) {
      for (const copier of copiers) {
        const result = await run(model, folder, copier);
        if (emulated && result.report.copier === '3fs') result.report.copier = '3fs (emulated)';
        results.push(result);
      }
    }
  } finally {
    await rm(folder, { recursive: true });
  }

  printTable([
    ['model', 'largest difference', 'with external data', 'copier', 'tensors', 'bytes', 'seconds', 'rate'],
    ...results.map(({ model, inputs, externalData, report }) => [
      model,
      inputs.largest.toExponential(1),
      externalData.largest,
      report.copier,
      report.tensors,
      formatBytes(report.bytes),
      report.seconds.toFixed(4),
      formatRate(report.bytesPerSecond),
    ]),
  ]);
  const wrong = results.filter(({ inputs, externalData }) => !inputs.withinTolerance || externalData.largest !== 0);
  if (results.length === SHOWN.length * copiers.length && wrong.length === 0) {
    printLine(
      'Every model gives what its original gives: |a - b| <= 1e-5 + 1e-4 |b|, and the same bits with external data.',
    );
  } else {
    printLine(`OUT OF TOLERANCE: ${wrong.map(({ model }) => model).join(', ') || 'models are missing'}`);
    process.exitCode = 1;
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
