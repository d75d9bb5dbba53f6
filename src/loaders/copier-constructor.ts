import { checkOptions, fail, takesAtMost } from '../base/checks.js';
import type { CopierConstructor } from '../copiers/copier.js';
import { type CopierType, copierConstructor, isBuiltin } from '../copiers/registry.js';
import { Device, type DeviceString } from '../device/device.js';
import { checkDemands, type LoaderOptions, PARALLEL_CHECKS } from './options.js';

/**
 * The constructor of a copier for one device, for use without a loader. Built-in copiers take any option of a
 * loader; others check theirs. UNKNOWN_COPIER lists the registered ones; INVALID_ARGUMENT.
 */
export function createCopierConstructor(
  type: CopierType,
  device: Device | DeviceString,
  options: Readonly<Record<string, unknown>> = {},
): CopierConstructor {
  takesAtMost(3, arguments, 'createCopierConstructor');
  const builtin = isBuiltin(type);
  const target = device instanceof Device ? device : Device.parse(device);
  if (typeof options !== 'object' || options === null) fail('options', 'an object', options);
  if (!builtin) return copierConstructor(type, target, options);
  const checked: LoaderOptions = checkOptions(options, PARALLEL_CHECKS);
  checkDemands(checked, type === 'auto' ? 'nogds' : type, type === '3fs' && checked.reader !== undefined);
  return copierConstructor(type, target, checked as Readonly<Record<string, unknown>>);
}
