/** The tensors that a command writes anew: which are copied from file to file, and which have to be loaded. */
import { FastSafetensorsError } from '../base/errors.js';
import { CallWatch } from '../base/waiting.js';
import { chooseCopier } from '../copiers/registry.js';
import { Device } from '../device/device.js';
import { type ConvertibleDType, type DeviceTensor, ParallelLoader } from '../index.js';
import { StoredModel, StoredTensor } from '../safetensors/save-stored.js';
import type { SaveStream } from '../safetensors/save-writer.js';
import { type ShardSet, tensorsOf } from '../safetensors/shard-set.js';
import { convertedDtype } from '../transfer/convert-items.js';
import type { FilesOptions } from './files-options.js';

/** Bytes of tensors that are loaded at a time: two or three such batches, beside those that are being written. */
const BATCH_BYTES = 16 * 1024 * 1024;

export interface ModelOptions extends FilesOptions {
  readonly dtype?: ConvertibleDType;
  readonly dtypePolicy?: 'strict' | 'convertible';
}

/**
 * The tensors of these names. Loaded are those that are converted, those that a load compares with digests, and all
 * that USRBIO reads faster than the mount of 3FS gives them.
 */
export async function modelOf(
  source: string,
  shards: ShardSet,
  wanted: ReadonlySet<string>,
  options: ModelOptions,
): Promise<StoredModel | SaveStream> {
  const calls = new CallWatch();
  const paths = shards.inputs.map(({ metadata }) => metadata.path);
  const isCopied = (await calls.during(chooseCopier(Device.parse('cpu'), paths, {}, calls))) === 'nogds';
  const tensors: (StoredTensor | string)[] = []; // names of those that are loaded
  for (const [metadata, index] of tensorsOf(shards)) {
    const name = metadata.nameAt(index);
    if (!wanted.has(name)) continue;
    const stays = convertedDtype(metadata, index, options) === metadata.frameAt(index).dtype;
    const stored = isCopied && stays && metadata.identity && !metadata.hasSums;
    tensors.push(stored ? new StoredTensor(metadata, index, calls) : name);
  }
  const stored = tensors.filter((tensor) => tensor instanceof StoredTensor);
  return stored.length === tensors.length ? new StoredModel(stored) : partlyLoaded(source, tensors, options);
}

/** Tensors in the order of their files. FILE_CHANGED where those are not the ones any more that were looked at. */
async function* partlyLoaded(
  source: string,
  tensors: readonly (StoredTensor | string)[],
  options: ModelOptions,
): AsyncGenerator<[string, DeviceTensor] | StoredTensor, void, void> {
  const names = new Set(tensors.filter((tensor) => typeof tensor === 'string'));
  const loader = new ParallelLoader({
    ...options,
    files: source,
    // Pages of mapped files would count as this process's memory until the whole file has been written.
    mmap: false,
    maxBatchBytes: BATCH_BYTES,
    filter: (name) => names.has(name),
  });
  const loaded = loader.iterateWeights();
  let came = 0;
  try {
    for (const tensor of tensors) {
      if (tensor instanceof StoredTensor) {
        yield tensor;
        continue;
      }
      const { done, value } = await loaded.next();
      if (done) {
        const message = `${source} was replaced while it was read: expected ${names.size} tensors, found ${came}`;
        throw new FastSafetensorsError('FILE_CHANGED', `${message}; try again`, { path: source });
      }
      ++came;
      yield value;
    }
  } finally {
    await loaded.return?.();
    await loader.close();
  }
}
