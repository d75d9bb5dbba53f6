import { safeLogger } from '../base/logger.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { configOptions, readConfig } from './config.js';
import type { ParallelOptions } from './options.js';
import { ParallelLoader } from './parallel-loader.js';

/** A ParallelLoader that takes from the configuration (see loadConfig) what its options do not say. */
export class AutoLoader<T = DeviceTensor> extends ParallelLoader<T> {
  /** Reads the configuration. IO_ERROR, and the codes of ParallelLoader's constructor. */
  constructor(options: ParallelOptions<T>) {
    const given = { ...options };
    const debug = (message: string): void => {
      if (given.debugLog || process.env.FASTSAFETENSORS_DEBUG)
        safeLogger(given.logger ?? console).debug(`fastsafetensors: ${message}`);
    };
    super({ ...(configOptions(readConfig({}, debug), debug) as Partial<ParallelOptions<T>>), ...given });
  }
}
