import { describe } from '../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { Device } from '../device/device.js';
import { type Availability, gdsAvailability, nogdsAvailability, unifiedAvailability } from './availability.js';
import { chooseCopier } from './choose.js';
import type { CopierConstructor, CopierFactory } from './copier.js';
import { gds } from './gds.js';
import { nogds } from './nogds.js';
import { threeFs, threeFsAvailability } from './three-fs.js';
import { unified } from './unified.js';

export type CopierType = 'auto' | '3fs' | 'gds' | 'nogds' | 'unified' | (string & {});

export type { Availability };

interface Builtin {
  readonly factory: CopierFactory;
  /** Off the event loop; never rejects for an unavailable copier. */
  readonly availability: (device: Device) => Promise<Availability>;
}

const BUILTINS: ReadonlyMap<string, Builtin> = new Map<string, Builtin>([
  ['3fs', { factory: threeFs, availability: threeFsAvailability }],
  ['gds', { factory: gds, availability: gdsAvailability }],
  ['nogds', { factory: nogds, availability: nogdsAvailability }],
  ['unified', { factory: unified, availability: unifiedAvailability }],
]);

/** Registered copiers by name. Once a JavaScript realm: the ES module entry re-exports the CommonJS one. */
const registry = new Map<string, CopierFactory>([...BUILTINS].map(([type, { factory }]) => [type, factory]));

/**
 * Registers a copier under a name, replacing one of that name; without a factory the built-in of that name (built-ins are registered on import, so this does
 * nothing but say that the name is right). UNKNOWN_COPIER, INVALID_ARGUMENT.
 */
export function registerCopier(type: CopierType, factory?: CopierFactory): void {
  if (typeof type !== 'string' || type === '')
    throw new InvalidArgumentError(`registerCopier: expected a name, found ${typeof type}`);
  if (type === 'auto')
    throw new InvalidArgumentError("registerCopier: 'auto' is the choice among copiers and no copier");
  if (factory === undefined) {
    const builtin = BUILTINS.get(type);
    if (!builtin) throw unknown(type, [...BUILTINS.keys()]);
    registry.set(type, builtin.factory);
    return;
  }
  if (typeof factory !== 'function')
    throw new InvalidArgumentError(`registerCopier: expected a factory function, found ${typeof factory}`);
  registry.set(type, factory);
}

/** Names of all registered copiers, built-ins first. */
export function registeredCopiers(): string[] {
  return [...registry.keys()];
}

/** The factory of that name, and whether it is this package's own. UNKNOWN_COPIER lists those there are. */
export function copierFactory(type: CopierType): { factory: CopierFactory; builtin: boolean } {
  const factory = registry.get(type === 'auto' ? 'nogds' : type);
  if (!factory) throw unknown(type, registeredCopiers());
  return { factory, builtin: [...BUILTINS.values()].some((own) => own.factory === factory) };
}

/** What a copier's factory makes of options that were checked. UNKNOWN_COPIER, INVALID_ARGUMENT for what is no constructor. */
export function copierConstructor(
  type: CopierType,
  device: Device,
  options: Readonly<Record<string, unknown>>,
): CopierConstructor {
  const make = copierFactory(type).factory(device, options);
  if (typeof make !== 'function') {
    throw new InvalidArgumentError(
      `the factory of copier "${type}" returned ${describe(make)}, expected a function (metadata, device) => Copier`,
    );
  }
  return make;
}

/** Whether a copier can be used here, and what to do if not. Off the event loop; does not open the cuFile driver. Rejects with UNKNOWN_COPIER only. */
export async function copierAvailability(type: CopierType, device = 'cpu'): Promise<Availability> {
  const target = Device.parse(device);
  const name = type === 'auto' ? await chooseCopier(target, [], {}) : type;
  const factory = registry.get(name);
  if (!factory) throw unknown(type, registeredCopiers());
  const builtin = BUILTINS.get(name);
  return builtin && builtin.factory === factory ? builtin.availability(target) : { available: true };
}

function unknown(type: string, known: readonly string[]): FastSafetensorsError {
  return new FastSafetensorsError(
    'UNKNOWN_COPIER',
    `there is no copier ${describe(type)}; there are ${known.join(', ')}`,
  );
}
