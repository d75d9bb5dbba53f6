import { FastSafetensorsError } from '../base/errors.js';
import type { SafeTensorsMetadata } from './metadata.js';

/** The checked headers of a model's files, which has no tensor twice. */
export interface ShardSet {
  readonly metadata: readonly SafeTensorsMetadata[];
  /** By file: which of its tensors belong to the model, in the order of offsets. */
  readonly inputs: readonly ShardTensors[];
  /** The number of the file that has a tensor; undefined for none. */
  fileOf(tensor: string): number | undefined;
  /** What was left out, and what was found elsewhere than the index says, for the report. */
  readonly notes: readonly string[];
}

/** A file, and indices of its tensors; null for all. */
export interface ShardTensors {
  readonly metadata: SafeTensorsMetadata;
  readonly selection: Uint32Array | null;
}

/** The tensors of a model, in the order of files and offsets. */
export function* tensorsOf({
  inputs,
}: ShardSet): Generator<[metadata: SafeTensorsMetadata, index: number], void, void> {
  for (const { metadata, selection } of inputs) {
    const count = selection?.length ?? metadata.tensorCount;
    for (let i = 0; i < count; ++i) yield [metadata, selection ? selection[i]! : i];
  }
}

/** DUPLICATE_TENSOR: two files have a tensor. */
export function duplicate(tensor: string, a: SafeTensorsMetadata, b: SafeTensorsMetadata): FastSafetensorsError {
  const message = `tensor "${tensor}" is in ${a.path} and in ${b.path}; load them separately or remove one`;
  return new FastSafetensorsError('DUPLICATE_TENSOR', message, { path: b.path, tensor });
}
