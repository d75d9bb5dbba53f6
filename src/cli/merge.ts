import type { Command } from 'commander';
import { addSaveOptions, resave, type SaveOptions } from './save-options.js';

export function registerMerge(program: Command): void {
  addSaveOptions(program.command('merge'))
    .description('write a model as one file')
    .argument('<source>', 'a file, a folder, or an index.json')
    .argument('<out>', 'a .safetensors file, which is replaced where it is there')
    .action((source: string, out: string, options: SaveOptions) => resave(source, out, true, options));
}
