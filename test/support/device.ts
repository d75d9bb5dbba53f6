import { nativeMetrics } from 'fastsafetensors-node';

/**
 * Where loaders that name no device load: the host, or the emulated GPU on which cuda-loaders.test.ts runs these tests
 * once more.
 */
export const DEVICE = process.env.FST_TEST_DEVICE ?? 'cpu';
export const ON_HOST = DEVICE === 'cpu';
export const OUT_OF_MEMORY = ON_HOST ? 'OUT_OF_HOST_MEMORY' : 'OUT_OF_DEVICE_MEMORY';

/** Bytes of tensors, wherever they are. */
export function tensorBytes(): number {
  const { hostBytes, deviceBytes } = nativeMetrics();
  return hostBytes + deviceBytes;
}

/** A load takes the staging that was estimated; small ones take less where it has to be page-locked. */
export function expectStaging(found: number, { stagingBytes }: { stagingBytes: number }): void {
  if (process.env.FST_TEST_DEVICE === undefined) expect(found).toBe(stagingBytes);
  else expect(found).toBeLessThanOrEqual(stagingBytes);
}
