import { stat } from 'node:fs/promises';
import { writeAtomically } from '../../base/atomic-write.js';
import { FastSafetensorsError, ioError } from '../../base/errors.js';
import { openRegularFile, readAt, readRegularFile } from '../../base/regular-file.js';
import { otherFormatOf } from '../../safetensors/other-format.js';

/** The most that a protobuf message can have. */
const MAX_MODEL_BYTES = 2 ** 31 - 1;

/** INVALID_ARGUMENT for a file that is recognised as something else than a model of ONNX Runtime. */
export async function refuseOtherFormat(path: string): Promise<void> {
  const format = await otherFormatOf(path, ['onnx', 'ort']);
  if (format === undefined) return;
  const message = `${path}: expected an ONNX model, but it is ${format}`;
  throw new FastSafetensorsError('INVALID_ARGUMENT', message, { path });
}

/** The bytes of an .onnx file. IO_ERROR; INVALID_ARGUMENT for a file that is too large to be one. */
export async function readModel(path: string): Promise<Uint8Array> {
  let size: number;
  try {
    ({ size } = await stat(path));
    if (size <= MAX_MODEL_BYTES) return await readRegularFile(path, MAX_MODEL_BYTES);
  } catch (cause) {
    throw ioError('read', path, cause);
  }
  await refuseOtherFormat(path);
  throw tooLarge(path, `${size} bytes`, '; larger ones keep weights in files of their own');
}

/** Writes an .onnx file atomically. IO_ERROR; INVALID_ARGUMENT for a model that is too large for one. */
export async function writeModel(path: string, bytes: Uint8Array): Promise<void> {
  if (bytes.length > MAX_MODEL_BYTES) throw tooLarge(path, `the graph alone would have ${bytes.length} bytes`);
  await writeAtomically(path, [bytes]);
}

/** The first bytes of a file, enough for isOrtFormat. IO_ERROR. */
export async function readStart(path: string): Promise<Uint8Array> {
  const start = Buffer.alloc(8);
  try {
    const handle = await openRegularFile(path);
    try {
      return start.subarray(0, await readAt(handle, start, 0));
    } finally {
      await handle.close();
    }
  } catch (cause) {
    throw ioError('read', path, cause);
  }
}

/** Whether these are the first bytes of a model in ORT format: a flatbuffer with this identifier. */
export function isOrtFormat(bytes: Uint8Array): boolean {
  return Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.byteLength, 8)).toString('latin1', 4) === 'ORTM';
}

function tooLarge(path: string, found: string, remedy = ''): FastSafetensorsError {
  const message = `${path}: ${found}, but an ONNX model has at most ${MAX_MODEL_BYTES}${remedy}`;
  return new FastSafetensorsError('INVALID_ARGUMENT', message, { path });
}
