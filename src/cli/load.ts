import type { Command } from 'commander';
import { counted } from '../base/counted.js';
import { type ConvertibleDType, ParallelLoader } from '../index.js';
import { addFilesOptions, type FilesOptions } from './files-options.js';
import { formatBytes, formatRate, printJson, printLine } from './output.js';

interface LoadCommandOptions extends FilesOptions {
  device: string;
  copier: string;
  dtype?: ConvertibleDType; // checked by the loader
  dtypePolicy?: 'strict' | 'convertible'; // so is this
  progress?: boolean;
  json?: boolean;
}

export function registerLoad(program: Command): void {
  addFilesOptions(program.command('load'))
    .description('load every tensor once and say how fast that was')
    .argument('<files...>', 'files, a folder, or an index.json')
    .option('--device <device>', "'cpu', 'cuda' or 'cuda:N'", 'cpu')
    .option('--copier <type>', "'auto', '3fs', 'gds', 'nogds' or 'unified'", 'auto')
    .option('--dtype <dtype>', 'convert floating tensors while loading, for example F32')
    .option('--dtype-policy <policy>', "'strict', or 'convertible': tensors that cannot become the dtype stay")
    .option('--allow-trailing-bytes', 'accept bytes after the last tensor')
    .option('--progress', 'show a progress bar on stderr')
    .option('--json', 'print JSON')
    .action(load);
}

async function load(files: string[], { json, ...options }: LoadCommandOptions): Promise<void> {
  const loader = new ParallelLoader({ ...options, files: files.length === 1 ? files[0]! : files });
  try {
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    const { report } = loader;
    if (json) return printJson(report);
    const what = `${counted(report.files, 'file')}, ${counted(report.tensors, 'tensor')}, ${formatBytes(report.bytes)}`;
    const rate = formatRate(report.bytesPerSecond);
    printLine(`${what} in ${report.seconds.toFixed(3)} s: ${rate} with copier ${report.copier} on ${report.device}`);
    for (const { path, from, to, reason } of report.fallbacks)
      printLine(`  ${path}: fell back from '${from}' to '${to}': ${reason}`);
    for (const note of report.notes) printLine(`  ${note}`);
  } finally {
    await loader.close();
  }
}
