// Stands in for 'fastsafetensors-node' when loader tests run on the emulated GPU (cuda-loaders.test.ts): loaders without a device of their own use
// FST_TEST_DEVICE.
export * from '../../../src/index.js';

import * as fst from '../../../src/index.js';

const device = process.env.FST_TEST_DEVICE;

export class SafeTensorsFileLoader<T = fst.DeviceTensor> extends fst.SafeTensorsFileLoader<T> {
  constructor(options: fst.LoaderOptions<T> = {}) {
    super({ device, ...options });
  }
}

export class ParallelLoader<T = fst.DeviceTensor> extends fst.ParallelLoader<T> {
  constructor(options: fst.ParallelOptions<T>) {
    super({ device, ...options });
  }
}

export function fastsafeOpen<T = fst.DeviceTensor>(files: fst.Files, options: fst.LoaderOptions<T> = {}) {
  return fst.fastsafeOpen<T>(files, { device, ...options });
}
