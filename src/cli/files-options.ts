import { type Command, Option } from 'commander';
import type { FileOptions } from '../loaders/options.js';

/** What every command takes that reads the files of a model. */
export interface FilesOptions extends FileOptions {
  allowTrailingBytes?: boolean;
}

/** Adds FilesOptions to a command. */
export function addFilesOptions(command: Command): Command {
  return command
    .option('--variant <name>', "of a folder, take the files of this variant, such as 'fp16'")
    .addOption(
      new Option('--index <rule>', 'whether an index decides, or must agree with its shards')
        .choices(['decides', 'strict'])
        .default('decides'),
    )
    .option('--no-follow-links', 'refuse links that lead from an index out of its folder');
}
