import type { Device } from '../device.js';
import { checkCopierOptions } from '../options.js';
import type { CopierConstructor } from './copier.js';
import { type CopierType, constructorOf, isBuiltin } from './registry.js';

/**
 * The constructor of a copier for one device, for who drives it without a loader. Options are the loaders' and are checked as theirs; a copier of the user's own may have others
 * besides. INVALID_ARGUMENT; UNKNOWN_COPIER lists those there are; COPIER_UNAVAILABLE says why.
 */
export function createCopierConstructor(
  type: CopierType,
  device: Device | string,
  options: Readonly<Record<string, unknown>> = {},
): CopierConstructor {
  return constructorOf(type, device, checkCopierOptions(options, !isBuiltin(type)));
}
