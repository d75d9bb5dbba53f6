// Stands in for 'fastsafetensors-node' when loader tests run on the emulated GPU (cuda-loaders.test.ts): loaders
// without a device of their own use FST_TEST_DEVICE.
export * from '../../../src/index.js';

import * as fst from '../../../src/index.js';

/** Tests with a device of their own name cuda:0 and cuda:1: where there is one GPU (FST_TEST_GPUS), both are that. */
const one = process.env.FST_TEST_GPUS === '1';
function onDevice<O extends Pick<fst.LoaderOptions, 'device' | 'devices'>>(options: O): O {
  if (options.devices || typeof options.device === 'object' || typeof options.device === 'function') return options;
  const device = options.device ?? process.env.FST_TEST_DEVICE;
  return { ...options, device: one && /^(cuda|gpu):1$/.test(device ?? '') ? 'cuda:0' : device };
}

export class SafeTensorsFileLoader<T = fst.DeviceTensor> extends fst.SafeTensorsFileLoader<T> {
  constructor(options: fst.LoaderOptions<T> = {}) {
    super(onDevice(options));
  }
}

export class ParallelLoader<T = fst.DeviceTensor> extends fst.ParallelLoader<T> {
  constructor(options: fst.ParallelOptions<T>) {
    super(onDevice(options));
  }
}

export function fastsafeOpen<T = fst.DeviceTensor>(files: fst.Files, options: fst.LoaderOptions<T> = {}) {
  return fst.fastsafeOpen<T>(files, onDevice(options));
}
