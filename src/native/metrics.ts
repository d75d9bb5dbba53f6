import { takesAtMost } from '../base/checks.js';
import { native } from './addon.js';
import type { Metrics } from './core.js';

/**
 * What the whole process holds: all zero when everything is closed, and disposed or collected. Without what '3fs' keeps
 * for the next loader: at most 128 MiB of shared memory for three seconds.
 */
export function nativeMetrics(): Metrics {
  takesAtMost(0, arguments, 'nativeMetrics');
  return native().metrics();
}
