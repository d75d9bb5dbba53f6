import type { Command } from 'commander';
import { SafeTensorsMetadata } from '../index.js';
import { formatBytes, printJson, printLine, printTable } from './output.js';

interface InspectOptions {
  json?: boolean;
  allowTrailingBytes?: boolean;
}

export function registerInspect(program: Command): void {
  program
    .command('inspect')
    .description('list what the header of a .safetensors file says')
    .argument('<file>', 'a .safetensors file')
    .option('--allow-trailing-bytes', 'accept bytes after the last tensor')
    .option('--json', 'print JSON')
    .action(inspect);
}

async function inspect(file: string, options: InspectOptions): Promise<void> {
  const header = await SafeTensorsMetadata.fromFile(file, { allowTrailingBytes: options.allowTrailingBytes ?? false });
  const tensors = [...header].map(({ name, dtype, shape, dataOffsets, byteLength }) => ({
    name,
    dtype,
    shape,
    dataOffsets,
    byteLength,
  }));
  if (options.json) {
    const { path, headerLength, sizeBytes, tensorCount } = header;
    printJson({
      path,
      headerLength,
      sizeBytes,
      tensorCount,
      metadata: [...header.metadata].map(([key, value]) => ({ key, value })),
      tensors,
    });
    return;
  }
  printLine(
    `${header.path}: ${header.tensorCount} tensors, ${formatBytes(tensors.reduce((sum, { byteLength }) => sum + byteLength, 0))}, header ${header.headerLength} bytes`,
  );
  for (const [key, value] of header.metadata) printLine(`  ${key}: ${value}`);
  printTable(tensors.map(({ name, dtype, shape, byteLength }) => [dtype, `[${shape.join(', ')}]`, byteLength, name]));
}
