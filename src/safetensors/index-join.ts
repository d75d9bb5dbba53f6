/** What an index says of the tensors in its shards. */
import { basename } from 'node:path';
import { FastSafetensorsError } from '../base/errors.js';
import { listed } from '../base/listed.js';
import { type PackedTexts, TextNumbers } from '../base/packed-texts.js';
import { Turns } from '../base/timers.js';
import type { SafeTensorsMetadata } from './metadata.js';
import type { ShardIndex } from './shard-index.js';
import { duplicate, type ShardSet } from './shard-set.js';

/** In an array of files: none. */
const NONE = 2 ** 32 - 1;

/**
 * Joins the headers of an index's shards as it decides. Tensors that it does not name are left out. One that it names
 * is taken from the shard that it says; if that has none of the name, from the only other shard that does, and a note
 * says so. INVALID_INDEX for one that no shard has, DUPLICATE_TENSOR where several others have it.
 */
export async function joinByIndex(metadata: readonly SafeTensorsMetadata[], index: ShardIndex): Promise<ShardSet> {
  const { path, packed, names, shards } = index;
  const fileOfPath = new Map(metadata.map((header, file) => [header.path, file]));
  const fileOfShard = shards.map((shard) => fileOfPath.get(shard)!);
  const said = (tensor: number): number => fileOfShard[packed.shardOf[tensor]!]!;
  const turns = new Turns(128);
  const numbers = await numbersOf(names, turns);

  const files = new Uint32Array(names.length).fill(NONE); // by tensor: that which it is taken from
  const elsewhere = new Map<number, number[]>(); // files that have a tensor, but not as the index says
  const unnamed: string[] = [];
  const partial = new Set<number>(); // files with tensors that are perhaps left out
  for (const [file, header] of metadata.entries()) {
    for (let i = 0; i < header.tensorCount; ++i) {
      const name = header.nameAt(i);
      const tensor = numbers.find(name);
      if (tensor >= 0 && said(tensor) === file) files[tensor] = file;
      else {
        partial.add(file);
        if (tensor < 0) unnamed.push(`"${name}" of ${basename(header.path)}`);
        else elsewhere.set(tensor, [...(elsewhere.get(tensor) ?? []), file]);
      }
      if (turns.due()) await turns.take();
    }
  }

  const moved: string[] = [];
  const copies: string[] = [];
  let twice: FastSafetensorsError | undefined;
  for (const [tensor, having] of elsewhere) {
    const name = names.at(tensor);
    const [first, second] = having.map((file) => metadata[file]!);
    const where = `"${name}" of ${basename(first!.path)}`;
    const chosen = files[tensor]!;
    if (chosen !== NONE) {
      copies.push(where);
      twice ??= duplicate(name, metadata[chosen]!, first!);
    } else if (second) throw duplicate(name, first!, second);
    else {
      moved.push(`${where}, not ${basename(metadata[said(tensor)]!.path)}`);
      files[tensor] = having[0]!;
    }
  }
  const absentOne = files.indexOf(NONE);
  // An index that is of other shards does not decide between copies either.
  if (absentOne >= 0) throw twice ?? absent(index, names.at(absentOne), metadata[said(absentOne)]!.path);

  const inputs = [];
  for (const [file, header] of metadata.entries()) {
    const wanted: number[] = [];
    for (let i = 0; partial.has(file) && i < header.tensorCount; ++i) {
      const tensor = numbers.find(header.nameAt(i));
      if (tensor >= 0 && files[tensor] === file) wanted.push(i);
      if (turns.due()) await turns.take();
    }
    inputs.push({ metadata: header, selection: partial.has(file) ? new Uint32Array(wanted) : null });
  }
  const notes = [
    ...note(`${path}: left out what it does not name`, unnamed),
    ...note(`${path}: left out what it says is in another shard, too`, copies),
    ...note(`${path}: taken from another shard than it says`, moved),
  ];
  const fileOf = (name: string): number | undefined => {
    const tensor = numbers.find(name);
    return tensor < 0 ? undefined : files[tensor];
  };
  return { metadata, inputs, notes, fileOf };
}

/** The number of each tensor that an index names. */
async function numbersOf(names: PackedTexts, turns: Turns): Promise<TextNumbers> {
  const numbers = new TextNumbers(names.length, (tensor) => names.at(tensor));
  for (let tensor = 0; tensor < names.length; ++tensor) {
    numbers.add(names.at(tensor), tensor);
    if (turns.due()) await turns.take();
  }
  return numbers;
}

function note(what: string, tensors: readonly string[]): string[] {
  return tensors.length > 0 ? [`${what}: ${listed(tensors)}`] : [];
}

/**
 * INVALID_INDEX unless index and shards name the same tensors in the same files. The shards' tensors are `count`, none
 * of them twice.
 */
export async function checkIndex(
  index: ShardIndex,
  metadata: readonly SafeTensorsMetadata[],
  fileOf: (tensor: string) => number | undefined,
  count: number,
): Promise<void> {
  const { path, packed, names, shards } = index;
  const { shardOf } = packed;
  const turns = new Turns(128);
  for (let i = 0; i < shardOf.length; ++i) {
    const tensor = names.at(i);
    const expected = shards[shardOf[i]!]!;
    const file = fileOf(tensor);
    if (file === undefined) throw absent(index, tensor, expected);
    const found = metadata[file]!.path;
    if (found !== expected)
      throw wrong(path, tensor, `should be in ${basename(expected)}, but is in ${basename(found)}`);
    if (turns.due()) await turns.take();
  }
  // The index names no tensor twice: with as many names, they are the same.
  if (shardOf.length === count) return;
  const numbers = await numbersOf(names, turns);
  for (const header of metadata) {
    for (let i = 0; i < header.tensorCount; ++i) {
      const tensor = header.nameAt(i);
      if (numbers.find(tensor) < 0) throw wrong(path, tensor, `is in ${basename(header.path)}, but not in the index`);
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
