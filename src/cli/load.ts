import type { Command } from 'commander';
import { counted } from '../base/counted.js';
import { type ConvertibleDType, ParallelLoader, type Split } from '../index.js';
import { addFilesOptions, type FilesOptions } from './files-options.js';
import { formatBytes, formatRate, printJson, printLine } from './output.js';

interface LoadCommandOptions extends FilesOptions {
  device?: string;
  devices?: string;
  split?: Split; // checked by the loader
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
    .option('--device <device>', "'cpu' (default), 'cuda' or 'cuda:N'")
    .option('--devices <devices>', "several, among which the model is split: 'cuda:0,cuda:1'")
    .option('--split <way>', "with --devices: 'layers' (default) or 'bytes'")
    .option('--copier <type>', "'auto', '3fs', 'gds', 'nogds' or 'unified'", 'auto')
    .option('--dtype <dtype>', 'convert floating tensors while loading, for example F32')
    .option('--dtype-policy <policy>', "'strict', or 'convertible': tensors that cannot become the dtype stay")
    .option('--allow-trailing-bytes', 'accept bytes after the last tensor')
    .option('--progress', 'show a progress bar on stderr')
    .option('--json', 'print JSON')
    .action(load);
}

async function load(files: string[], { json, devices, ...options }: LoadCommandOptions): Promise<void> {
  const among = devices?.split(',').map((name) => name.trim());
  const loader = new ParallelLoader({ ...options, devices: among, files: files.length === 1 ? files[0]! : files });
  try {
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    const { report } = loader;
    if (json) return printJson(report);
    const what = `${counted(report.files, 'file')}, ${counted(report.tensors, 'tensor')}, ${formatBytes(report.bytes)}`;
    const rate = formatRate(report.bytesPerSecond);
    printLine(`${what} in ${report.seconds.toFixed(3)} s: ${rate} with copier ${report.copier} on ${report.device}`);
    const each = Object.entries(report.devices);
    for (const [device, { tensors, bytes }] of each.length > 1 ? each : [])
      printLine(`  ${device}: ${counted(tensors, 'tensor')}, ${formatBytes(bytes)}`);
    for (const { path, from, to, reason } of report.fallbacks)
      printLine(`  ${path}: fell back from '${from}' to '${to}': ${reason}`);
    for (const note of report.notes) printLine(`  ${note}`);
  } finally {
    await loader.close();
  }
}
