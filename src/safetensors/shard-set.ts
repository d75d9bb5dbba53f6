import { FastSafetensorsError } from '../base/errors.js';
import { TextMap } from '../base/packed-texts.js';
import { Turns } from '../base/timers.js';
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

/** No files. */
export const NO_SHARDS: ShardSet = { metadata: [], inputs: [], notes: [], fileOf: () => undefined };

/** Tensors for which the table of joined sets is made, however many the first ones have. */
const MANY = 2 ** 16;

/** A file, and indices of its tensors; null for all. */
export interface ShardTensors {
  readonly metadata: SafeTensorsMetadata;
  readonly selection: Uint32Array | null;
}

/** The tensors of a model, in the order of files and offsets. */
export function* tensorsOf({
  inputs,
}: Pick<ShardSet, 'inputs'>): Generator<[metadata: SafeTensorsMetadata, index: number], void, void> {
  for (const { metadata, selection } of inputs) {
    const count = selection?.length ?? metadata.tensorCount;
    for (let i = 0; i < count; ++i) yield [metadata, selection ? selection[i]! : i];
  }
}

/** Where a file's tensor is among those of the model; -1 where it does not belong to it. */
export function placeOf(index: number, { selection }: ShardTensors): number {
  if (!selection) return index;
  let low = 0;
  for (let high = selection.length; low < high; ) {
    const middle = (low + high) >> 1;
    if (selection[middle]! < index) low = middle + 1;
    else high = middle;
  }
  return selection[low] === index ? low : -1;
}

/** Their names. */
export function* namesOf(inputs: readonly ShardTensors[]): Generator<string, void, void> {
  for (const [metadata, index] of tensorsOf({ inputs })) yield metadata.nameAt(index);
}

/** `__metadata__` of each file, by its path. */
export function metadataByPath(files: Iterable<SafeTensorsMetadata>): Map<string, ReadonlyMap<string, string>> {
  return new Map(Array.from(files, (file) => [file.path, file.metadata]));
}

/** DUPLICATE_TENSOR: two files have a tensor. */
export function duplicate(tensor: string, a: SafeTensorsMetadata, b: SafeTensorsMetadata): FastSafetensorsError {
  const message = `tensor "${tensor}" is in ${a.path} and in ${b.path}; load them separately or remove one`;
  return new FastSafetensorsError('DUPLICATE_TENSOR', message, { path: b.path, tensor });
}

/** Sets that were joined one after the other. */
class JoinedShards implements ShardSet {
  readonly metadata: readonly SafeTensorsMetadata[];
  readonly inputs: readonly ShardTensors[];
  readonly notes: readonly string[];
  readonly files: TextMap<number>; // by tensor; the sets that are joined to this one add theirs

  constructor(sets: readonly ShardSet[], files: TextMap<number>) {
    this.metadata = sets.flatMap(({ metadata }) => metadata);
    this.inputs = sets.flatMap(({ inputs }) => inputs);
    this.notes = sets.flatMap(({ notes }) => notes);
    this.files = files;
  }

  fileOf(tensor: string): number | undefined {
    const file = this.files.get(tensor);
    return file !== undefined && file < this.metadata.length ? file : undefined;
  }
}

/** DUPLICATE_TENSOR where two sets have a tensor. */
export async function checkDistinct(before: ShardSet, added: ShardSet): Promise<void> {
  const turns = new Turns(128);
  for (const [metadata, index] of tensorsOf(added)) {
    const name = metadata.nameAt(index);
    const other = before.fileOf(name);
    if (other !== undefined) throw duplicate(name, before.metadata[other]!, metadata);
    if (turns.due()) await turns.take();
  }
}

/**
 * The files of two sets that checkDistinct() has compared. It takes turns of the event loop: where it is not waited
 * for, `before` is not to be joined again.
 */
export async function joinSets(before: ShardSet, added: ShardSet): Promise<ShardSet> {
  const turns = new Turns(128);
  const files = before instanceof JoinedShards ? before.files : new TextMap<number>(MANY);
  const put = async (set: ShardSet, first: number): Promise<void> => {
    for (const [metadata, index] of tensorsOf(set)) {
      const name = metadata.nameAt(index);
      files.set(name, first + set.fileOf(name)!);
      if (turns.due()) await turns.take();
    }
  };
  if (!(before instanceof JoinedShards)) await put(before, 0);
  await put(added, before.metadata.length);
  return new JoinedShards([before, added], files);
}
