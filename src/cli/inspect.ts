import type { Command } from 'commander';
import { pathOf } from '../base/checks.js';
import { counted } from '../base/counted.js';
import { CallWatch } from '../base/waiting.js';
import type { SafeTensorsMetadata } from '../index.js';
import { readShards } from '../safetensors/shards.js';
import { addFilesOptions, type FilesOptions } from './files-options.js';
import { formatBytes, printJson, printLine, printTable } from './output.js';

interface InspectOptions extends FilesOptions {
  json?: boolean;
}

export function registerInspect(program: Command): void {
  addFilesOptions(program.command('inspect'))
    .description('list what the headers of .safetensors files say')
    .argument('<file>', 'a .safetensors file, a folder, or an index.json')
    .option('--allow-trailing-bytes', 'accept bytes after the last tensor')
    .option('--json', 'print JSON')
    .action(inspect);
}

async function inspect(path: string, { json, ...options }: InspectOptions): Promise<void> {
  const calls = new CallWatch();
  const { metadata: headers, notes } = await calls.during(readShards(path, { ...options, calls }));
  const single = headers.length === 1 && headers[0]!.path === pathOf(path, 'file');
  if (json) {
    const files = headers.map((header) => header.toJSON());
    const tensorCount = files.reduce((sum, file) => sum + file.tensorCount, 0);
    return printJson(single ? files[0] : { path, tensorCount, files, notes });
  }
  for (const header of headers) print(header);
  for (const note of notes) printLine(`note: ${note}`);
}

function print(header: SafeTensorsMetadata): void {
  const bytes = [...header].reduce((sum, { byteLength }) => sum + byteLength, 0);
  const tensors = counted(header.tensorCount, 'tensor');
  printLine(`${header.path}: ${tensors}, ${formatBytes(bytes)}, header ${header.headerLength} bytes`);
  for (const [key, value] of header.metadata) printLine(`  ${key}: ${value}`);
  printTable(
    [...header].map(({ name, dtype, shape, byteLength }) => [dtype, `[${shape.join(', ')}]`, byteLength, name]),
  );
}
