import { setTimeout } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { type Metrics, nativeMetrics } from 'fastsafetensors-node';
import { NOTHING_HELD } from './tensor-files.js';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

// What earlier test files of this process dropped may not be collected yet: their memory is no business of the tests
// that count.
let dropped = 0;
beforeAll(async () => {
  collectGarbage();
  await setTimeout(0);
  dropped = nativeMetrics().hostBytes;
});

/**
 * Waits until this process holds nothing: what was cancelled is given back by other threads. Fails with what is left
 * after some seconds. With `collect`, garbage is collected first: for tests that drop typed arrays or loaders; others
 * must not need it. `stagingBytes`: what the slots of an open loader may take.
 */
export async function expectNothingHeld({ collect = false, timeoutMs = 5000, stagingBytes = 0 } = {}): Promise<void> {
  const held = (): Metrics => {
    const now = nativeMetrics();
    return {
      ...now,
      hostBytes: now.hostBytes <= dropped ? 0 : now.hostBytes,
      stagingBytes: now.stagingBytes <= stagingBytes ? 0 : now.stagingBytes,
    };
  };
  const end = Date.now() + timeoutMs;
  while (JSON.stringify(held()) !== JSON.stringify(NOTHING_HELD) && Date.now() < end) {
    if (collect) collectGarbage();
    await setTimeout(5);
  }
  expect(held()).toEqual(NOTHING_HELD);
}

/** What live values take of the JavaScript heap. */
export function heapBytes(): number {
  collectGarbage();
  return process.memoryUsage().heapUsed;
}
