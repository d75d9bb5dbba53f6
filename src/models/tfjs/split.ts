/** Surgery that moves the weights of a TensorFlow.js model into .safetensors files: `split-tfjs`. */
import { rm } from 'node:fs/promises';
import { basename, dirname, extname, join, resolve } from 'node:path';
import { moveOver, writeAtomically } from '../../base/atomic-write.js';
import { pathOf } from '../../base/checks.js';
import { InvalidArgumentError } from '../../base/errors.js';
import { makeFolder } from '../../base/make-folder.js';
import { removedAtExit, temporaryIn } from '../../base/temporary.js';
import { type SaveArray, saveFile } from '../../safetensors/save-file.js';
import { generatorOf, refuseOverwriting } from '../refuse-overwriting.js';
import { readModelJson, type TfjsModel } from './model-json.js';
import { shardWeights } from './shard-weights.js';

/** Where and how splitTfjs writes. */
export interface TfjsSplitOptions {
  /** Folder for all files, made if it does not exist; default: the model's own. */
  readonly out?: string;
  /** Most bytes of a file, and of memory, unless one weight is larger; default: 2 GiB. */
  readonly maxShardBytes?: number;
  /** Read shards through links that leave the model's folder; default: true. */
  readonly followLinks?: boolean;
}

/** What splitTfjs wrote. */
export interface TfjsSplitReport {
  /** Path of the original model.json. */
  readonly model: string;
  /** Path of the model.json without weights. */
  readonly graph: string;
  /** What to pass as `weights`: the path of the .safetensors file, or of the index of several. */
  readonly weights: string;
  /** Paths of the .safetensors files. */
  readonly files: readonly string[];
  /** The number of weights. */
  readonly tensors: number;
  /** Bytes of all weights. */
  readonly bytes: number;
}

export const DEFAULT_SHARD_BYTES = 2 ** 31;

/**
 * Writes the weights of a TensorFlow.js model as .safetensors beside a model.json without weights,
 * `<model>.split.json`, which names them. Bytes stay as they are: quantized weights keep their quantization (in the
 * model.json), strings become U8. The original is not changed, and each file is replaced atomically. Rejects with
 * INVALID_INDEX for what is no model.json, MISSING_SHARD, UNSAFE_SHARD_PATH, UNEXPECTED_EOF,
 * METADATA_INCOMPLETE_BUFFER, INVALID_ARGUMENT when there is nothing to split or a file would be overwritten that no
 * split wrote, and the codes of saveFile.
 */
export async function splitTfjs(path: string | URL, options: TfjsSplitOptions = {}): Promise<TfjsSplitReport> {
  const model = await readModelJson(path);
  if (model.json.fastsafetensors) throw new InvalidArgumentError(`${model.path} was split already`);
  if (model.specs.length === 0) throw new InvalidArgumentError(`${model.path} lists no weights to split`);
  const folder = resolve(options.out === undefined ? dirname(model.path) : pathOf(options.out, 'out'));
  const stem = basename(model.path, extname(model.path));
  await makeFolder(folder);

  const writer = new ShardWriter(folder, stem, options.maxShardBytes ?? DEFAULT_SHARD_BYTES);
  let written: { weights: string; files: string[] };
  try {
    for await (const { spec, dtype, shape, byteLength, read } of shardWeights(model, options)) {
      await writer.add({ name: spec.name, dtype, shape, data: await read(0, byteLength) });
    }
    written = await writer.finish();
  } catch (error) {
    await writer.abandon();
    throw error;
  }
  const graph = join(folder, `${stem}.split.json`);
  await writeJson(graph, withoutWeights(model, basename(written.weights)));
  return { model: resolve(model.path), graph, ...written, tensors: model.specs.length, bytes: writer.bytes };
}

/** Its manifest has no files, so that plain TensorFlow.js fails rather than compute with weights that do not exist. */
function withoutWeights({ json }: TfjsModel, weights: string): object {
  return {
    ...json,
    weightsManifest: json.weightsManifest?.map((group) => ({ ...group, paths: [] })),
    fastsafetensors: { weights },
  };
}

/** Writes a file whenever it has tensors enough for one; the files get their names when their number is known. */
class ShardWriter {
  readonly #folder: string;
  readonly #stem: string;
  readonly #maxBytes: number;
  readonly #shards: { temporary: string; release: () => void; names: string[] }[] = [];
  #pending: (SaveArray & { name: string })[] = [];
  #pendingBytes = 0;
  bytes = 0;

  constructor(folder: string, stem: string, maxBytes: number) {
    this.#folder = folder;
    this.#stem = stem;
    this.#maxBytes = maxBytes;
  }

  async add(tensor: SaveArray & { name: string }): Promise<void> {
    if (this.#pending.length > 0 && this.#pendingBytes + tensor.data.byteLength > this.#maxBytes) await this.#flush();
    this.#pending.push(tensor);
    this.#pendingBytes += tensor.data.byteLength;
    this.bytes += tensor.data.byteLength;
  }

  async finish(): Promise<{ weights: string; files: string[] }> {
    await this.#flush();
    const count = this.#shards.length;
    const digits = (n: number) => String(n).padStart(5, '0');
    const names = this.#shards.map((_, i) =>
      count === 1 ? `${this.#stem}.safetensors` : `${this.#stem}-${digits(i + 1)}-of-${digits(count)}.safetensors`,
    );
    const files = names.map((name) => join(this.#folder, name));
    for (const file of files) await refuseOverwriting(file, 'split-tfjs');
    for (const [i, { temporary, release }] of this.#shards.entries()) {
      await moveOver(temporary, files[i]!);
      release();
    }
    if (count === 1) return { weights: files[0]!, files };
    const index = join(this.#folder, `${this.#stem}.safetensors.index.json`);
    const entries = this.#shards.flatMap((shard, i) => shard.names.map((name) => [name, names[i]]));
    await writeJson(index, { metadata: { total_size: this.bytes }, weight_map: Object.fromEntries(entries) });
    return { weights: index, files };
  }

  async abandon(): Promise<void> {
    for (const { temporary, release } of this.#shards) {
      await rm(temporary, { force: true });
      release();
    }
  }

  async #flush(): Promise<void> {
    const temporary = temporaryIn(this.#folder);
    const names = this.#pending.map(({ name }) => name);
    this.#shards.push({ temporary, release: removedAtExit(temporary), names });
    await saveFile(this.#pending, temporary, { metadata: { format: 'tfjs', generator: generatorOf('split-tfjs') } });
    this.#pending = [];
    this.#pendingBytes = 0;
  }
}

async function writeJson(path: string, value: object): Promise<void> {
  await writeAtomically(path, [Buffer.from(`${JSON.stringify(value)}\n`)]);
}
