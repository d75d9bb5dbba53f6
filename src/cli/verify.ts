import type { Command } from 'commander';
import { counted } from '../base/counted.js';
import { CallWatch, type FileCalls } from '../base/waiting.js';
import { compareData } from '../safetensors/compare-data.js';
import { resolveFiles } from '../safetensors/files.js';
import { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { tensorsOf } from '../safetensors/shard-set.js';
import { joinShards } from '../safetensors/shards.js';
import { addFilesOptions, type FilesOptions } from './files-options.js';
import { formatBytes, linesOf, printJson, printLine } from './output.js';

interface VerifyOptions extends FilesOptions {
  json?: boolean;
  data?: boolean;
}

/** What was found about one file; `code` and `message` say why it is not ok. */
interface Verdict {
  path: string;
  ok: boolean;
  tensors?: number;
  bytes?: number;
  /** With --data: tensors whose bytes were compared with digests. */
  verifiedTensors?: number;
  code?: string;
  message?: string;
  warnings: string[];
}

export function registerVerify(program: Command): void {
  addFilesOptions(program.command('verify'))
    .description('check headers, sizes and the index of .safetensors files; exit code 1 when any is not ok')
    .argument('<files...>', 'files, folders, or index.json files')
    .option('--allow-trailing-bytes', 'bytes after the last tensor are a warning instead of an error')
    .option('--data', 'read all data, and compare it with the digests that there are')
    .option('--json', 'print JSON')
    .action(verify);
}

async function verify(paths: string[], { json, data, ...options }: VerifyOptions): Promise<void> {
  const verdicts: Verdict[] = [];
  for (const path of paths) {
    try {
      const calls = new CallWatch();
      verdicts.push(...(await calls.during(verifyPath(path, options, calls, data))));
    } catch (error) {
      verdicts.push(failed(path, error));
    }
  }
  const ok = verdicts.every((verdict) => verdict.ok);
  if (!ok) process.exitCode = 1;
  if (json) return printJson({ ok, files: verdicts });
  for (const { path, ok: fine, tensors, bytes, verifiedTensors, code, message, warnings } of verdicts) {
    const verified = verifiedTensors === undefined ? '' : `, data of ${counted(verifiedTensors, 'tensor')} verified`;
    if (!fine) for (const line of linesOf(`${path}: ${code}: ${message}`)) printLine(line);
    else if (tensors === undefined) printLine(`${path}: ok`);
    else printLine(`${path}: ok, ${counted(tensors, 'tensor')}, ${formatBytes(bytes!)}${verified}`);
    for (const warning of warnings) printLine(`${path}: warning: ${warning}`);
  }
}

/**
 * The verdict of each file that the path means, after that of the index, or of the folder if its files disagree or some
 * were left out.
 */
async function verifyPath(path: string, options: FilesOptions, calls: FileCalls, data = false): Promise<Verdict[]> {
  const { allowTrailingBytes = false } = options;
  const { paths, index, notes, checkUnchanged } = await resolveFiles(path, { ...options, calls });
  const headers: SafeTensorsMetadata[] = [];
  const files: Verdict[] = [];
  for (const file of paths) {
    try {
      const header = await SafeTensorsMetadata.read(file, { allowTrailingBytes, calls });
      headers.push(header);
      files.push(data ? await verifyData(header, options, calls) : passed(header));
    } catch (error) {
      files.push(failed(file, error));
    }
  }
  const whole = index?.path ?? path;
  if (index?.missing) return [failed(whole, index.missing), ...files];
  if (headers.length < paths.length) return files; // one of them is to blame
  await checkUnchanged?.();
  const warnings = [...notes];
  try {
    const joined = await joinShards(headers, index, options.index);
    warnings.push(...joined.notes);
    const said = index?.packed.totalSize ?? -1;
    const bytes = [...tensorsOf(joined)].reduce((sum, [file, tensor]) => sum + file.frameAt(tensor).byteLength, 0);
    if (said >= 0 && said !== bytes) warnings.push(`total_size is ${said}, but the tensors have ${bytes} bytes`);
    return index || warnings.length > 0 ? [{ path: whole, ok: true, warnings }, ...files] : files;
  } catch (error) {
    const verdict = failed(whole, error);
    // With an index that disagrees with its shards, nobody knows which files belong to the model.
    return verdict.code === 'INVALID_INDEX' ? [verdict] : [{ ...verdict, warnings }, ...files];
  }
}

/** passed(), where all data has the digests that there are; else fails with the first that differs. */
async function verifyData(header: SafeTensorsMetadata, options: FilesOptions, calls: FileCalls): Promise<Verdict> {
  const verdict = passed(header);
  const verifiedTensors = await compareData(header, options.followLinks, calls);
  const left = header.tensorCount - verifiedTensors;
  if (left > 0) verdict.warnings.push(`${counted(left, 'tensor')} without a digest: not verified`);
  return { ...verdict, verifiedTensors };
}

function passed(header: SafeTensorsMetadata): Verdict {
  const { path, tensorCount: tensors, trailingBytes } = header;
  const bytes = [...header].reduce((sum, { byteLength }) => sum + byteLength, 0);
  const warnings = trailingBytes > 0 ? [`${counted(trailingBytes, 'byte')} after the last tensor`] : [];
  return { path, ok: true, tensors, bytes, warnings };
}

/** Throws an error that is none of a file: without the addon, nothing can be said of any. */
function failed(path: string, error: unknown): Verdict {
  const { code, syscall, message } = error as NodeJS.ErrnoException;
  if (code === 'ADDON_MISSING' || code === 'PLATFORM_UNSUPPORTED') throw error;
  const prefix = `${path}: `; // each line begins with it anyway
  const text = message.startsWith(prefix) ? message.slice(prefix.length) : message;
  return { path, ok: false, code: syscall ? 'IO_ERROR' : (code ?? 'INTERNAL'), message: text, warnings: [] };
}
