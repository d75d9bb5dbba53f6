import { realpath } from 'node:fs/promises';
import { FastSafetensorsError } from '../base/errors.js';
import { SafeTensorsMetadata } from '../safetensors/metadata.js';

/** What a split writes into the metadata of its weights files, so that later ones know what they may overwrite. */
export function generatorOf(command: 'split-onnx' | 'split-tfjs'): string {
  return `fastsafetensors ${command}`;
}

/**
 * INVALID_ARGUMENT when a weights file exists that the command did not write: `model.safetensors` beside a model may
 * well be somebody's only copy of other weights. Also when it is, links followed, one of `own`: the model's files.
 */
export async function refuseOverwriting(
  file: string,
  command: 'split-onnx' | 'split-tfjs',
  own: ReadonlySet<string> = new Set(),
): Promise<void> {
  const existing = await realpath(file).catch(() => undefined);
  if (existing === undefined) return;
  if (own.has(existing)) throw refused(file, 'holds weights of the model itself');
  const header = await SafeTensorsMetadata.fromFile(existing).catch(() => undefined);
  if (header?.metadata.get('generator') !== generatorOf(command)) throw refused(file, `was not written by ${command}`);
}

function refused(file: string, why: string): FastSafetensorsError {
  const message = `${file}: exists and ${why}; choose another folder with out (--out)`;
  return new FastSafetensorsError('INVALID_ARGUMENT', message, { path: file });
}
