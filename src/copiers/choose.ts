import type { Device } from '../device/device.js';
import { gdsAvailability, unifiedAvailability } from './availability.js';
import { onThreeFs, threeFsAvailability } from './three-fs.js';

/**
 * What 'auto' means for these files on this device, as upstream chooses: USRBIO where all files are on a 3FS mount, else GPUDirect Storage where there is a direct path (unless `nogds`), else memory shared with
 * the host, else ordinary reads. Off the event loop; never rejects, and opens no cuFile driver.
 */
export async function chooseCopier(
  device: Device,
  files: readonly string[],
  options: { readonly nogds?: boolean },
): Promise<'3fs' | 'gds' | 'unified' | 'nogds'> {
  if ((await onThreeFs(files)) && (await threeFsAvailability()).available) return '3fs';
  if (device.type === 'cpu') return 'nogds';
  if (options.nogds !== true && (await gdsAvailability(device)).available) return 'gds';
  if ((await unifiedAvailability(device)).available) return 'unified';
  return 'nogds';
}
