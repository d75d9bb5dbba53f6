import type { Device } from '../device.js';
import type { LoaderOptions } from '../options.js';
import { gdsAvailability, unifiedAvailability } from './availability.js';

/**
 * What 'auto' means for these files on this device, as upstream chooses: GPUDirect Storage where there is a direct path (unless `nogds`), else memory shared with
 * the host, else ordinary reads. Off the event loop; never rejects, and opens no cuFile driver.
 */
export async function chooseCopier(
  device: Device,
  _files: readonly string[],
  options: Pick<LoaderOptions, 'nogds'>,
): Promise<'gds' | 'unified' | 'nogds'> {
  if (device.type === 'cpu') return 'nogds';
  if (options.nogds !== true && (await gdsAvailability(device)).available) return 'gds';
  if ((await unifiedAvailability(device)).available) return 'unified';
  return 'nogds';
}
