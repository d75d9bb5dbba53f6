import { takesAtMost } from '../base/checks.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { disposeWhenMade } from '../device/framework.js';
import type { Files } from '../safetensors/files.js';
import { checkLoaderOptions, type LoaderOptions, MOST_AHEAD } from './options.js';
import { ParallelLoader } from './parallel-loader.js';

/**
 * Every tensor of a model by its name, in the order of files and offsets: the shortest way. The caller disposes them.
 * The record has no prototype, so that a tensor may have any name. Rejects as ParallelLoader.iterateWeights(), and then
 * no tensor is left.
 */
export async function loadFile<T = DeviceTensor>(
  files: Files,
  options: LoaderOptions<T> = {},
): Promise<Record<string, T>> {
  takesAtMost(2, arguments, 'loadFile');
  const tensors: Record<string, T> = Object.create(null);
  // All memory is wanted in the end: nothing is gained by waiting with the next batch.
  const loader = new ParallelLoader<T>({ ...checkLoaderOptions(options), files, queueSize: MOST_AHEAD });
  try {
    for await (const [name, tensor] of loader) tensors[name] = tensor;
  } catch (error) {
    for (const tensor of Object.values(tensors)) disposeWhenMade(Promise.resolve(tensor));
    throw error;
  }
  return tensors;
}
