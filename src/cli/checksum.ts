import { lstat, rm } from 'node:fs/promises';
import { type Command, Option } from 'commander';
import { writeAtomically } from '../base/atomic-write.js';
import { counted } from '../base/counted.js';
import type { DigestName } from '../base/digest.js';
import { FastSafetensorsError } from '../base/errors.js';
import { CallWatch } from '../base/waiting.js';
import { compareData } from '../safetensors/compare-data.js';
import { resolveFiles } from '../safetensors/files.js';
import { digestTensors, rangesOf, sumsText } from '../safetensors/make-sums.js';
import { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { digestRanges, sumsPath } from '../safetensors/sums.js';
import { addFilesOptions, type FilesOptions } from './files-options.js';
import { formatBytes, formatRate, printJson, printLine } from './output.js';

interface ChecksumOptions extends FilesOptions {
  algorithm: 'xxh3' | 'sha256';
  force?: boolean;
  json?: boolean;
}

export function registerChecksum(program: Command): void {
  addFilesOptions(program.command('checksum'))
    .description('write the digests of all tensors beside each file, as FILE.sums.json, for loaders to verify')
    .argument('<files...>', 'files, folders, or index.json files')
    .addOption(
      new Option('--algorithm <name>', 'xxh3 (128 bits) finds damage, sha256 also what was changed on purpose')
        .choices(['xxh3', 'sha256'])
        .default('xxh3'),
    )
    .option('--force', 'write digests of what is there, also where others say that it is damaged')
    .option('--allow-trailing-bytes', 'accept bytes after the last tensor')
    .option('--json', 'print JSON')
    .action(checksum);
}

async function checksum(paths: string[], { algorithm, force, json, ...options }: ChecksumOptions): Promise<void> {
  const { allowTrailingBytes } = options;
  const name: DigestName = algorithm === 'xxh3' ? 'xxh3-128' : algorithm;
  const began = performance.now();
  const written: { path: string; sums: string; tensors: number; bytes: number }[] = [];
  for (const path of paths) {
    const calls = new CallWatch();
    const files = await calls.during(resolveFiles(path, { ...options, calls }));
    if (files.index?.missing) throw files.index.missing;
    for (const file of files.paths) {
      const header = await calls.during(SafeTensorsMetadata.read(file, { allowTrailingBytes, calls }));
      if (!force) await calls.during(checkData(header, options, calls));
      written.push(await calls.during(writeSums(header, name, calls)));
    }
  }
  const seconds = (performance.now() - began) / 1e3;
  if (json) return printJson({ algorithm: name, files: written, seconds });
  for (const { sums, tensors, bytes } of written)
    printLine(`${sums}: ${name} of ${counted(tensors, 'tensor')}, ${formatBytes(bytes)}`);
  const bytes = written.reduce((sum, file) => sum + file.bytes, 0);
  printLine(`${formatBytes(bytes)} in ${seconds.toFixed(3)} s: ${formatRate(seconds > 0 ? bytes / seconds : 0)}`);
}

/** Rejects where other digests, of header, name or sums file, say that the file is damaged: new ones would hide it. */
async function checkData(header: SafeTensorsMetadata, { followLinks }: FilesOptions, calls: CallWatch): Promise<void> {
  try {
    await compareData(header, followLinks, calls);
  } catch (error) {
    if (!(error instanceof FastSafetensorsError)) throw error;
    const { code, message, path, tensor, offset } = error;
    const advice = 'no digests were written; with --force they are, of what is there';
    throw new FastSafetensorsError(code, `${message}; ${advice}`, { path, tensor, offset, cause: error });
  }
}

async function writeSums(header: SafeTensorsMetadata, name: DigestName, calls: CallWatch) {
  const ranges = rangesOf(header);
  const [[digest], digests] = await Promise.all([
    digestRanges(header, name, Float64Array.of(0, header.dataStart), calls),
    digestTensors(header, ranges, name, calls),
  ]);
  const sums = sumsPath(header.path);
  const text = sumsText(ranges, digests, { size: header.sizeBytes, header: digest! });
  // A link of that name came with the model: what it leads to is not ours to write.
  const found = await lstat(sums).catch(() => undefined);
  if (found?.isSymbolicLink()) await rm(sums);
  try {
    await writeAtomically(sums, [Buffer.from(text)]);
  } catch (error) {
    const cause = (error as Error).cause as NodeJS.ErrnoException | undefined;
    if (cause?.code !== 'ENAMETOOLONG') throw error;
    const found = `cannot write ${sums}: the file system has no names that long`;
    const advice = `give ${header.path} a shorter one, or save it with checksum: true, for digests in the header`;
    throw new FastSafetensorsError('IO_ERROR', `${found}; ${advice}`, { path: sums, cause });
  }
  return {
    path: header.path,
    sums,
    tensors: ranges.length,
    bytes: ranges.reduce((sum, { length }) => sum + length, 0),
  };
}
