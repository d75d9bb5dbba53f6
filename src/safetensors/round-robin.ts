import { checkDistinct, joinSets, NO_SHARDS, type ShardSet } from './shard-set.js';

/**
 * The files of several sets as one: the first of each, then the second of each, and so on, as fastsafetensors takes the
 * files of ranks. DUPLICATE_TENSOR where two have a tensor.
 */
export async function joinRoundRobin(sets: readonly ShardSet[]): Promise<ShardSet> {
  if (sets.length <= 1) return sets[0] ?? NO_SHARDS;
  let joined = NO_SHARDS;
  const most = Math.max(...sets.map(({ metadata }) => metadata.length));
  for (let place = 0; place < most; ++place) {
    for (const set of sets) {
      const one = fileAt(set, place);
      if (!one) continue;
      await checkDistinct(joined, one);
      joined = await joinSets(joined, one);
    }
  }
  return joined;
}

/** One file of a set; the notes of the set come with the first. */
function fileAt(set: ShardSet, place: number): ShardSet | undefined {
  const [metadata, tensors] = [set.metadata[place], set.inputs[place]];
  if (!metadata || !tensors) return undefined;
  const fileOf = (name: string): number | undefined => (set.fileOf(name) === place ? 0 : undefined);
  return { metadata: [metadata], inputs: [tensors], notes: place === 0 ? set.notes : [], fileOf };
}
