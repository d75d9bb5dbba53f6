import type { Command } from 'commander';
import { addMaxShardBytes, addSaveOptions, resave, type SaveOptions } from './save-options.js';

export function registerReshard(program: Command): void {
  addMaxShardBytes(addSaveOptions(program.command('reshard')))
    .description('write a model as files of another size, with their index')
    .argument('<source>', 'a file, a folder, or an index.json')
    .argument('<out>', 'a folder, made if it is not there; its model is replaced')
    .action((source: string, out: string, options: SaveOptions) => resave(source, out, false, options));
}
