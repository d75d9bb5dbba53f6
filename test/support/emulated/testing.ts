// Stands in for 'fastsafetensors-node/testing' likewise: a fake device only where a test needs its faults, the emulated
// GPU elsewhere.
export * from '../../../src/testing/index.js';

import { type FakeDeviceOptions, useFakeDevices as use } from '../../../src/testing/index.js';

export function useFakeDevices(options: FakeDeviceOptions | null): void {
  use(options?.failCopy || options?.memoryLimit ? options : null);
}
