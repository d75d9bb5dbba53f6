import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { DTypeName } from '../../src/base/dtype.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import { saveFile } from '../../src/safetensors/save-file.js';

export interface TestTensor {
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView;
}

/** A folder that is removed after the tests of the file. */
export function testFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-test-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
}

export async function writeTensors(path: string, tensors: Readonly<Record<string, TestTensor>>): Promise<string> {
  await saveFile(
    Object.entries(tensors).map(([name, { dtype, shape, data }]) => ({ name, dtype, shape, data: bytesOf(data) })),
    path,
  );
  return path;
}

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** Two rounds: what is unreachable is gone, what is still used was in danger. */
export async function collectGarbage(): Promise<void> {
  for (let round = 0; round < 2; ++round) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Collects garbage until no tensor memory is left, or for some rounds: then the figures say what is. */
export async function collectedMetrics(): Promise<ReturnType<typeof nativeMetrics>> {
  for (let round = 0; round < 20; ++round) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (nativeMetrics().hostBytes === 0) break;
  }
  return nativeMetrics();
}

export const NOTHING_HELD = {
  deviceBytes: 0,
  hostBytes: 0,
  mappedBytes: 0,
  stagingBytes: 0,
  openFiles: 0,
  rings: 0,
  inFlight: 0,
};
