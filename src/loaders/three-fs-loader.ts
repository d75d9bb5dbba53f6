import { takesAtMost } from '../base/checks.js';
import { InvalidArgumentError } from '../base/errors.js';
import { isBuiltin } from '../copiers/registry.js';
import { loadThreeFsEarly } from '../copiers/three-fs.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { SafeTensorsFileLoader } from './file-loader.js';
import { checkLoaderOptions, checkParallelOptions, type LoaderOptions, type ParallelOptions } from './options.js';
import { ParallelLoader } from './parallel-loader.js';

/** SafeTensorsFileLoader over DeepSeek 3FS, on the mount of the files unless `mountPoint` names another. */
export class ThreeFSLoader<T = DeviceTensor> extends SafeTensorsFileLoader<T> {
  /** INVALID_ARGUMENT, also for another copier than '3fs'. */
  constructor(options: LoaderOptions<T> = {}) {
    takesAtMost(1, arguments, 'ThreeFSLoader');
    loadEarly(options);
    const checked = checkLoaderOptions(options);
    super({ ...checked, copier: threeFsOf(checked.copier) });
  }
}

/** ParallelLoader over DeepSeek 3FS. */
export class ParallelThreeFSLoader<T = DeviceTensor> extends ParallelLoader<T> {
  /** INVALID_ARGUMENT, also for another copier than '3fs'. */
  constructor(options: ParallelOptions<T>) {
    takesAtMost(1, arguments, 'ParallelThreeFSLoader');
    loadEarly(options);
    const checked = checkParallelOptions(options);
    super({ ...checked, copier: threeFsOf(checked.copier) });
  }
}

/** The client library is loaded while options are checked. */
function loadEarly(options: { readonly reader?: unknown } | undefined): void {
  if (isBuiltin('3fs') && options?.reader === undefined) loadThreeFsEarly();
}

function threeFsOf(copier: string | undefined): '3fs' {
  if (copier === undefined || copier === '3fs') return '3fs';
  const advice = 'use SafeTensorsFileLoader or ParallelLoader for others';
  throw new InvalidArgumentError(`copier: a 3FS loader reads through '3fs', found "${copier}"; ${advice}`);
}
