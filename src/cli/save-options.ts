/** What the commands have in common that write the tensors of a model anew: reshard, convert, merge. */
import { type Command, InvalidArgumentError as WrongArgument } from 'commander';
import { counted } from '../base/counted.js';
import { InvalidArgumentError } from '../base/errors.js';
import { CallWatch } from '../base/waiting.js';
import type { ConvertibleDType } from '../index.js';
import { type SaveStreamOptions, saveOne, saveSet } from '../safetensors/save-sharded.js';
import { namesOf, type ShardSet } from '../safetensors/shard-set.js';
import { readShards } from '../safetensors/shards.js';
import { addFilesOptions, type FilesOptions } from './files-options.js';
import { formatBytes, formatRate, printJson, printLine } from './output.js';
import { modelOf } from './save-model.js';

export interface SaveOptions extends FilesOptions {
  include?: string[];
  exclude?: string[];
  maxShardBytes?: number;
  fsync?: boolean;
  checksum?: boolean;
  dtype?: ConvertibleDType; // checked by the loader
  dtypePolicy?: 'strict' | 'convertible'; // so is this
  json?: boolean;
}

/** Adds SaveOptions to a command, but for those that only some have. */
export function addSaveOptions(command: Command): Command {
  return addFilesOptions(command)
    .option('--include <pattern>', "take tensors of these names alone, '*' for any text; repeat for more", collect)
    .option('--exclude <pattern>', 'leave out tensors of these names; repeat for more', collect)
    .option('--no-fsync', 'do not wait until files are on the disk')
    .option('--checksum', 'write digests of the tensors into the headers, for loaders to verify')
    .option('--allow-trailing-bytes', 'accept bytes after the last tensor')
    .option('--json', 'print JSON');
}

export function addMaxShardBytes(command: Command): Command {
  return command.option('--max-shard-bytes <size>', 'bytes of tensors in a file: 5GB, 512MiB (default: 5GB)', size);
}

/** Writes what is wanted of `source` to `out`: as one file, or as a set to a folder. Prints what was done. */
export async function resave(source: string, out: string, one: boolean, options: SaveOptions): Promise<void> {
  const { json, include = [], exclude = [], maxShardBytes, fsync, checksum, dtype, dtypePolicy, ...files } = options;
  const calls = new CallWatch();
  const shards = await calls.during(readShards(source, { ...files, calls }));
  const wanted = chosen(shards, include, exclude);
  const began = performance.now();
  const style: SaveStreamOptions = { metadata: commonMetadata(shards), fsync, checksum };
  const model = await modelOf(source, shards, wanted, { ...files, ...(dtype && { dtype, dtypePolicy }) });
  const saved = one ? await saveOne(model, out, style) : await saveSet(model, out, { ...style, maxShardBytes });
  const seconds = (performance.now() - began) / 1e3;
  const { tensors, bytes } = saved;
  const facts = { ...saved, leftOut: [...namesOf(shards.inputs)].length - wanted.size, seconds, notes: shards.notes };
  const bytesPerSecond = seconds > 0 ? bytes / seconds : 0;
  if (json) return printJson({ ...facts, bytesPerSecond });
  const what = `${counted(saved.files.length, 'file')}, ${counted(tensors, 'tensor')}, ${formatBytes(bytes)}`;
  printLine(`${what} in ${seconds.toFixed(3)} s: ${formatRate(bytesPerSecond)}`);
  for (const file of saved.files) printLine(`  ${file}`);
  if (facts.leftOut > 0) printLine(`  left out: ${counted(facts.leftOut, 'tensor')}`);
  for (const note of facts.notes) printLine(`  ${note}`);
}

/** The names of tensors that are wanted. INVALID_ARGUMENT for a pattern that none has, and where none is left. */
function chosen(shards: ShardSet, include: readonly string[], exclude: readonly string[]): Set<string> {
  const names = [...namesOf(shards.inputs)];
  const matching = (pattern: string, option: string): string[] => {
    const parts = pattern.split('*').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
    const expression = new RegExp(`^${parts.join('.*')}$`, 's');
    const found = names.filter((name) => expression.test(name));
    if (found.length === 0) throw new InvalidArgumentError(`${option}: no tensor has a name like ${pattern}`);
    return found;
  };
  const wanted = new Set(include.length > 0 ? include.flatMap((pattern) => matching(pattern, '--include')) : names);
  for (const pattern of exclude) for (const name of matching(pattern, '--exclude')) wanted.delete(name);
  if (wanted.size === 0 && names.length > 0) throw new InvalidArgumentError('--exclude: no tensor is left');
  return wanted;
}

/** What all files say of themselves alike. */
function commonMetadata({ metadata: [first, ...others] }: ShardSet): Map<string, string> | undefined {
  const common = [...(first?.metadata ?? [])].filter(([key, value]) =>
    others.every(({ metadata }) => metadata.get(key) === value),
  );
  return common.length > 0 ? new Map(common) : undefined;
}

function collect(pattern: string, before: readonly string[] = []): string[] {
  return [...before, pattern];
}

const UNITS = ['', 'K', 'M', 'G', 'T'];

/** Bytes: 1000000, 512MiB, 5GB, 1.5g. */
function size(text: string): number {
  const [, number, unit = '', binary] = /^(\d+(?:\.\d+)?)\s*([KMGT])?(i)?B?$/i.exec(text) ?? [];
  const bytes = Math.floor(Number(number) * (binary ? 1024 : 1000) ** UNITS.indexOf(unit.toUpperCase()));
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw new WrongArgument('expected a number of bytes, or with a unit as in 5GB or 512MiB');
}
