/** What an index says of the tensors in its shards. */
import { basename } from 'node:path';
import { FastSafetensorsError } from '../base/errors.js';
import { listed } from '../base/listed.js';
import { TextMap } from '../base/packed-texts.js';
import { Turns } from '../base/timers.js';
import type { SafeTensorsMetadata } from './metadata.js';
import type { ShardIndex } from './shard-index.js';
import { duplicate, type ShardSet } from './shard-set.js';

/** The number of the file that each tensor is taken from. */
type FileOf = TextMap<number>;

/**
 * Joins the headers of an index's shards as it decides. Tensors that it does not name are left out. One that it names
 * is taken from the shard that it says; if that has none of the name, from the only other shard that does, and a note
 * says so. INVALID_INDEX for one that no shard has, DUPLICATE_TENSOR where several others have it.
 */
export async function joinByIndex(metadata: readonly SafeTensorsMetadata[], index: ShardIndex): Promise<ShardSet> {
  const { path, packed, names, shards } = index;
  const fileOfPath = new Map(metadata.map((header, file) => [header.path, file]));
  const turns = new Turns(128);
  const said: FileOf = new TextMap(names.length);
  for (let i = 0; i < packed.shardOf.length; ++i) {
    said.set(names.at(i), fileOfPath.get(shards[packed.shardOf[i]!]!)!);
    if (turns.due()) await turns.take();
  }

  const fileOf: FileOf = new TextMap(names.length);
  const elsewhere = new Map<string, number[]>(); // files that have a tensor, but not as the index says
  const unnamed: string[] = [];
  const partial = new Set<number>(); // files with tensors that are perhaps left out
  for (const [file, header] of metadata.entries()) {
    for (let i = 0; i < header.tensorCount; ++i) {
      const name = header.nameAt(i);
      const expected = said.get(name);
      if (expected === file) fileOf.set(name, file);
      else {
        partial.add(file);
        if (expected === undefined) unnamed.push(`"${name}" of ${basename(header.path)}`);
        else elsewhere.set(name, [...(elsewhere.get(name) ?? []), file]);
      }
      if (turns.due()) await turns.take();
    }
  }

  const moved: string[] = [];
  const copies: string[] = [];
  let twice: FastSafetensorsError | undefined;
  for (const [name, files] of elsewhere) {
    const [first, second] = files.map((file) => metadata[file]!);
    const where = `"${name}" of ${basename(first!.path)}`;
    const chosen = fileOf.get(name);
    if (chosen !== undefined) {
      copies.push(where);
      twice ??= duplicate(name, metadata[chosen]!, first!);
    } else if (second) throw duplicate(name, first!, second);
    else {
      moved.push(`${where}, not ${basename(metadata[said.get(name)!]!.path)}`);
      fileOf.set(name, files[0]!);
    }
  }
  for (let i = 0; i < names.length; ++i) {
    const name = names.at(i);
    // An index that is of other shards does not decide between copies either.
    if (!fileOf.has(name)) throw twice ?? absent(index, name, metadata[said.get(name)!]!.path);
    if (turns.due()) await turns.take();
  }

  const inputs = [];
  for (const [file, header] of metadata.entries()) {
    const wanted: number[] = [];
    for (let i = 0; partial.has(file) && i < header.tensorCount; ++i) {
      if (fileOf.get(header.nameAt(i)) === file) wanted.push(i);
      if (turns.due()) await turns.take();
    }
    inputs.push({ metadata: header, selection: partial.has(file) ? new Uint32Array(wanted) : null });
  }
  const notes = [
    ...note(`${path}: left out what it does not name`, unnamed),
    ...note(`${path}: left out what it says is in another shard, too`, copies),
    ...note(`${path}: taken from another shard than it says`, moved),
  ];
  return { metadata, inputs, notes, fileOf: (name) => fileOf.get(name) };
}

function note(what: string, tensors: readonly string[]): string[] {
  return tensors.length > 0 ? [`${what}: ${listed(tensors)}`] : [];
}

/** INVALID_INDEX unless index and shards name the same tensors in the same files. */
export async function checkIndex(
  index: ShardIndex,
  metadata: readonly SafeTensorsMetadata[],
  fileOf: FileOf,
): Promise<void> {
  const { path, packed, names, shards } = index;
  const { shardOf } = packed;
  const turns = new Turns(128);
  for (let i = 0; i < shardOf.length; ++i) {
    const tensor = names.at(i);
    const expected = shards[shardOf[i]!]!;
    const file = fileOf.get(tensor);
    if (file === undefined) throw absent(index, tensor, expected);
    const found = metadata[file]!.path;
    if (found !== expected)
      throw wrong(path, tensor, `should be in ${basename(expected)}, but is in ${basename(found)}`);
    if (turns.due()) await turns.take();
  }
  // The index names no tensor twice: with as many names, they are the same.
  if (shardOf.length === fileOf.size) return;
  const listed = new TextMap<true>(names.length);
  for (let i = 0; i < names.length; ++i) {
    listed.set(names.at(i), true);
    if (turns.due()) await turns.take();
  }
  for (const header of metadata) {
    for (let i = 0; i < header.tensorCount; ++i) {
      const tensor = header.nameAt(i);
      if (!listed.has(tensor)) throw wrong(path, tensor, `is in ${basename(header.path)}, but not in the index`);
      if (turns.due()) await turns.take();
    }
  }
}

function absent({ path }: ShardIndex, tensor: string, expected: string): FastSafetensorsError {
  return wrong(path, tensor, `should be in ${basename(expected)}, but no shard has it`);
}

function wrong(path: string, tensor: string, what: string): FastSafetensorsError {
  return new FastSafetensorsError('INVALID_INDEX', `${path}: tensor "${tensor}" ${what}`, { path, tensor });
}
