import { readdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Command } from 'commander';
import { counted } from '../base/counted.js';
import { FastSafetensorsError } from '../base/errors.js';
import { readRegularFile } from '../base/regular-file.js';
import { SafeTensorsFileLoader, SafeTensorsMetadata } from '../index.js';
import { MAX_INDEX_BYTES } from '../safetensors/shards.js';
import { formatBytes, printJson, printLine } from './output.js';

const INDEX_NAME = 'model.safetensors.index.json';

interface VerifyOptions {
  json?: boolean;
  allowTrailingBytes?: boolean;
}

/** What was found about one file. `code` and `message` are there when it is not ok. */
interface Verdict {
  path: string;
  ok: boolean;
  tensors?: number;
  bytes?: number;
  code?: string;
  message?: string;
  warnings: string[];
}

export function registerVerify(program: Command): void {
  program
    .command('verify')
    .description('check headers, sizes and the index of .safetensors files; exit code 1 when any is not ok')
    .argument('<files...>', 'files, folders, or index.json files')
    .option('--allow-trailing-bytes', 'bytes after the last tensor are a warning instead of an error')
    .option('--json', 'print JSON')
    .action(verify);
}

async function verify(paths: string[], options: VerifyOptions): Promise<void> {
  const allowTrailingBytes = options.allowTrailingBytes ?? false;
  const verdicts: Verdict[] = [];
  for (const path of paths) {
    try {
      verdicts.push(...(await verifyPath(path, allowTrailingBytes)));
    } catch (error) {
      verdicts.push(failed(path, error));
    }
  }
  const ok = verdicts.every((verdict) => verdict.ok);
  if (!ok) process.exitCode = 1;
  if (options.json) {
    printJson({ ok, files: verdicts });
    return;
  }
  for (const { path, ok: fine, tensors, bytes, code, message, warnings } of verdicts) {
    if (!fine) printLine(`${path}: ${code}: ${message}`);
    else
      printLine(`${path}: ok${tensors === undefined ? '' : `, ${counted(tensors, 'tensor')}, ${formatBytes(bytes!)}`}`);
    for (const warning of warnings) printLine(`${path}: warning: ${warning}`);
  }
}

async function verifyPath(path: string, allowTrailingBytes: boolean): Promise<Verdict[]> {
  if (path.endsWith('.json')) return verifyIndex(path, allowTrailingBytes);
  // What is not there is the metadata's to name.
  const isFolder = await stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
  if (!isFolder) return [await verifyFile(path, allowTrailingBytes)];
  const names = await readdir(path);
  if (names.includes(INDEX_NAME)) return verifyIndex(join(path, INDEX_NAME), allowTrailingBytes);
  const shards = names.filter((name) => name.endsWith('.safetensors')).sort();
  if (shards.length === 0) {
    throw new FastSafetensorsError(
      'NO_FILES',
      `${path}: expected ${INDEX_NAME} or *.safetensors files, found neither`,
      { path },
    );
  }
  const verdicts = [];
  for (const shard of shards) verdicts.push(await verifyFile(join(path, shard), allowTrailingBytes));
  return [...(await verifyTogether(path, verdicts, allowTrailingBytes)), ...verdicts];
}

async function verifyFile(path: string, allowTrailingBytes: boolean): Promise<Verdict> {
  try {
    const header = await SafeTensorsMetadata.fromFile(path, { allowTrailingBytes });
    const bytes = [...header].reduce((sum, { byteLength }) => sum + byteLength, 0);
    const warnings = header.trailingBytes > 0 ? [`${counted(header.trailingBytes, 'byte')} after the last tensor`] : [];
    return { path, ok: true, tensors: header.tensorCount, bytes, warnings };
  } catch (error) {
    return failed(path, error);
  }
}

/** The index with its rules, then each shard it names; shards of an index that cannot be trusted are not opened. */
async function verifyIndex(path: string, allowTrailingBytes: boolean): Promise<Verdict[]> {
  const together = await verifyTogether(path, [], allowTrailingBytes);
  if (
    together.some(
      ({ code }) => code !== undefined && ['INVALID_INDEX', 'UNSAFE_SHARD_PATH', 'IO_ERROR', 'NO_FILES'].includes(code),
    )
  )
    return together;

  const index = JSON.parse((await readRegularFile(path, MAX_INDEX_BYTES)).toString()) as {
    weight_map: Record<string, string>;
    metadata?: { total_size?: unknown };
  };
  const shards: Verdict[] = [];
  for (const shard of [...new Set(Object.values(index.weight_map))].sort())
    shards.push(await verifyFile(join(dirname(path), shard), allowTrailingBytes));

  const said = index.metadata?.total_size;
  const found = shards.reduce((sum, { bytes }) => sum + (bytes ?? 0), 0);
  const verdict = together[0] ?? { path, ok: true, warnings: [] };
  if (said !== undefined && said !== found && shards.every(({ ok }) => ok)) {
    verdict.warnings.push(`total_size is ${JSON.stringify(said)}, but the tensors have ${found} bytes`);
  }
  // What a shard is blamed for is not the index's fault.
  const blamed = shards.some(({ ok, code }) => !ok && code === verdict.code);
  return blamed && verdict.warnings.length === 0 ? shards : [verdict, ...shards];
}

/** What only shows in all files together: names in two shards, an index and shards that disagree. Nothing when they agree or a file itself is to blame. */
async function verifyTogether(
  path: string,
  files: readonly Verdict[],
  allowTrailingBytes: boolean,
): Promise<Verdict[]> {
  if (files.some(({ ok }) => !ok)) return [];
  const loader = new SafeTensorsFileLoader({ allowTrailingBytes });
  try {
    await loader.addFilenames(path);
    return [];
  } catch (error) {
    return [failed(path, error)];
  } finally {
    await loader.close();
  }
}

function failed(path: string, error: unknown): Verdict {
  const { code, syscall, message } = error as NodeJS.ErrnoException;
  const prefix = `${path}: `; // the line begins with it already
  const text = message.startsWith(prefix) ? message.slice(prefix.length) : message;
  return { path, ok: false, code: syscall ? 'IO_ERROR' : (code ?? 'INTERNAL'), message: text, warnings: [] };
}
