import type { Command } from 'commander';
import { addMaxShardBytes, addSaveOptions, resave, type SaveOptions } from './save-options.js';

export function registerConvert(program: Command): void {
  addMaxShardBytes(addSaveOptions(program.command('convert')))
    .description('write a model with its floating tensors in another dtype')
    .argument('<source>', 'a file, a folder, or an index.json')
    .argument('<out>', 'a .safetensors file, or a folder')
    .requiredOption('--dtype <dtype>', 'what floating tensors become, for example BF16')
    .option('--dtype-policy <policy>', "'strict', or 'convertible': tensors that cannot become the dtype stay")
    .action((source: string, out: string, options: SaveOptions) =>
      resave(source, out, out.endsWith('.safetensors'), options),
    );
}
