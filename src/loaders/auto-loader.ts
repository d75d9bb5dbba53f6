import { environmentSwitch, takesAtMost } from '../base/checks.js';
import { safeLogger } from '../base/logger.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import { type Configuration, configOptions, readConfig } from './config.js';
import { checkFiles, type ParallelOptions } from './options.js';
import { ParallelLoader } from './parallel-loader.js';

/** A ParallelLoader that takes from the configuration (see loadConfig) what its options do not say. */
export class AutoLoader<T = DeviceTensor> extends ParallelLoader<T> {
  /** The configuration, as loadConfig() gives it. */
  readonly config: Readonly<Record<string, unknown>>;

  /**
   * Reads the configuration, and says in one line what it comes to: to your logger's `info`, without one of yours only
   * where debug lines are on. IO_ERROR, and the codes of ParallelLoader's constructor.
   */
  constructor(options: ParallelOptions<T>) {
    takesAtMost(1, arguments, 'AutoLoader');
    const given = checkFiles(options);
    const left: string[] = []; // out; said when it is known whether the configuration turns debug lines on
    const wrong: string[] = [];
    const configuration = readConfig(
      {},
      (message) => left.push(message),
      (message) => wrong.push(message),
    );
    const merged = configOptions(configuration, given as Partial<ParallelOptions>, (message) => left.push(message));
    super(merged as unknown as ParallelOptions<T>);
    this.config = configuration.fields;
    const logger = safeLogger(given.logger ?? console);
    for (const message of wrong) logger.warn(`fastsafetensors: ${message}`);
    const debugging = merged.debugLog ?? environmentSwitch('FASTSAFETENSORS_DEBUG') ?? false;
    for (const message of debugging ? left : []) logger.debug(`fastsafetensors: ${message}`);
    if (given.logger || debugging) logger.info(`fastsafetensors: ${summary(configuration, merged)}`);
  }
}

function summary({ source, fields }: Configuration, options: Partial<ParallelOptions>): string {
  const { device: rule, devices, copier = 'auto', queueSize = 0, files, ...others } = options;
  const device = devices?.join('+') ?? (typeof rule === 'object' || typeof rule === 'function' ? 'by name' : rule);
  const plain = Object.entries(others).filter(([, value]) => ['string', 'number', 'boolean'].includes(typeof value));
  const count = Array.isArray(files) ? files.length : 1;
  const parts = {
    loader: fields.loader,
    device: device ?? 'cpu',
    files: count,
    copier,
    queueSize,
    ...Object.fromEntries(plain),
  };
  const text = Object.entries(parts).map(([name, value]) => `${name}=${value}`);
  return `AutoLoader by ${source}: ${text.join(', ')}`;
}
