import { type Entry, entry, writeModel } from './model-files.js';

/** The number of a name's layer; -1 for none. */
export const layer = (name: string): number => Number(/layers\.(\d+)/.exec(name)?.[1] ?? -1);

/** Two shards of a model of twelve layers, some of whose tensors are empty. */
export async function layeredModel(folder: string): Promise<{ files: string[]; entries: Entry[] }> {
  const all = [entry('model.embed_tokens.weight', 'F32', [64, 64])];
  for (let i = 0; i < 12; ++i) {
    all.push(entry(`model.layers.${i}.mlp.weight`, 'F16', [3 + i, 1000]));
    all.push(entry(`model.layers.${i}.norm.weight`, 'F32', [i % 4]));
  }
  all.push(entry('model.norm.weight', 'F32', [33]), entry('lm_head.weight', 'U8', [4000]));
  const shards = [all.slice(0, 10), all.slice(10)];
  const files = await Promise.all(shards.map((entries, i) => writeModel(folder, entries, `m${i}.safetensors`)));
  return { files, entries: all };
}
