import { describe, fail, takesAtMost } from '../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import type { FileCalls } from '../base/waiting.js';
import { Device } from '../device/device.js';
import { fileCall, native } from '../native/addon.js';
import type { HeaderOf } from '../safetensors/names-of-no-file.js';
import { type Availability, gdsAvailability, nogdsAvailability, unifiedAvailability } from './availability.js';
import type { CopierConstructor, CopierFactory } from './copier.js';
import { engineConstructor } from './engine-copier.js';
import { type EngineSpec, engineOf, type SpecFactory } from './engine-spec.js';
import { gds } from './gds.js';
import { nogds } from './nogds.js';
import { threeFs, threeFsAvailability } from './three-fs.js';
import { unified } from './unified.js';

/** Names a copier: 'auto', a built-in one, or one that was registered. */
export type CopierType = 'auto' | '3fs' | 'gds' | 'nogds' | 'unified' | (string & {});

export type { Availability };

interface Builtin {
  /** What reads, for copierAvailability(). */
  readonly backend?: string;
  readonly spec: SpecFactory;
  /** Off the event loop; never rejects for an unavailable copier. */
  readonly availability: (device: Device) => Promise<Availability>;
}

const BUILTINS: ReadonlyMap<string, Builtin> = new Map<string, Builtin>([
  ['3fs', { backend: 'usrbio', spec: threeFs, availability: () => threeFsAvailability() }],
  ['gds', { backend: 'cufile', spec: gds, availability: gdsAvailability }],
  ['nogds', { backend: 'pread', spec: nogds, availability: nogdsAvailability }],
  ['unified', { backend: 'pread', spec: unified, availability: unifiedAvailability }],
]);

/**
 * Copiers of fastsafetensors that this package has none of: they can be asked for, are never available, and are not
 * listed.
 */
const ABSENT: ReadonlyMap<string, Builtin> = new Map<string, Builtin>([['fgds', absent('FGDS')]]);

/**
 * Registered copiers by name; those that are functions are the user's own. Once in a JavaScript realm: the entry for ES
 * modules re-exports the CommonJS one.
 */
const registry = new Map<string, Builtin | CopierFactory>(BUILTINS);

/**
 * Registers a copier under a name, in place of one of that name. Without a factory, the built-in of that name: they are
 * registered on import, so that this only checks the name. A factory gets a loader's options as they were given, with
 * `copierOptions` over them, and carries out those that say how to read, such as maxThreads; limits of time and rate
 * are the loader's. UNKNOWN_COPIER, INVALID_ARGUMENT.
 */
export function registerCopier(type: CopierType, factory?: CopierFactory): void {
  takesAtMost(2, arguments, 'registerCopier');
  if (typeof type !== 'string' || type === '') fail('registerCopier', 'a name', type);
  if (type === 'auto')
    throw new InvalidArgumentError("registerCopier: 'auto' is the choice among copiers and no copier");
  if (factory === undefined) {
    const builtin = BUILTINS.get(type);
    if (!builtin) throw unknown(type, [...BUILTINS.keys()]);
    registry.set(type, builtin);
    return;
  }
  if (typeof factory !== 'function') fail('registerCopier', 'a factory function', factory);
  registry.set(type, factory);
}

/** Names of all registered copiers, built-ins first. */
export function registeredCopiers(): string[] {
  takesAtMost(0, arguments, 'registeredCopiers');
  return [...registry.keys()];
}

/** Whether a copier of this name is registered, or one of fastsafetensors that is never available. @internal */
export function isKnown(type: CopierType): boolean {
  return registry.has(type) || ABSENT.has(type);
}

/** Whether a user registered a copier under this name. @internal */
export function isOwn(type: CopierType): boolean {
  return typeof registry.get(type) === 'function';
}

/** Whether that is a copier of this package; 'auto' is what 'nogds' is. UNKNOWN_COPIER. @internal */
export function isBuiltin(type: CopierType): boolean {
  return typeof registered(type === 'auto' ? 'nogds' : type) !== 'function';
}

/** What a copier knows of names that are no files; undefined for those of this package. UNKNOWN_COPIER. @internal */
export function headersKnownTo(type: CopierType): HeaderOf | undefined {
  const copier = registered(type === 'auto' ? 'nogds' : type);
  return typeof copier === 'function' ? copier.metadata : undefined;
}

/**
 * What loaders run: an engine, or a copier of the user's own. Of options that were checked. UNKNOWN_COPIER,
 * INVALID_ARGUMENT for a factory that returns no constructor. @internal
 */
export function makeCopier(
  type: CopierType,
  device: Device,
  options: Readonly<Record<string, unknown>>,
): EngineSpec | CopierConstructor {
  const copier = registered(copierAsked(type, options));
  if (typeof copier !== 'function') return copier.spec(device, options);
  const make = copier(device, ownOptions(options));
  if (typeof make === 'function') return engineOf(make) ?? make;
  const found = `the factory of copier "${type}" returned ${describe(make)}`;
  throw new InvalidArgumentError(`${found}, expected a function (metadata, device) => Copier`);
}

/** The copier that options name: `nogds` rules 'gds' out, which then is 'nogds'. @internal */
export function copierAsked(type: CopierType, { nogds }: { readonly nogds?: unknown }): CopierType {
  return type === 'gds' && nogds === true && !isOwn('gds') ? 'nogds' : type;
}

/** What the factory of a user's copier is given: the options, and over them those that are for it alone. */
function ownOptions(options: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  const { copierOptions } = options;
  return typeof copierOptions === 'object' ? { ...options, ...copierOptions } : options;
}

/** makeCopier() as a constructor, for use without a loader. @internal */
export function copierConstructor(
  type: CopierType,
  device: Device,
  options: Readonly<Record<string, unknown>>,
): CopierConstructor {
  const copier = makeCopier(type === 'auto' ? 'nogds' : type, device, options);
  return typeof copier === 'function' ? copier : engineConstructor(copier);
}

/**
 * Whether a copier can be used here, and what to do if not. Off the event loop; does not open the cuFile driver.
 * Rejects with UNKNOWN_COPIER and, for `device`, INVALID_ARGUMENT only.
 */
export async function copierAvailability(type: CopierType, device = 'cpu'): Promise<Availability> {
  takesAtMost(2, arguments, 'copierAvailability');
  const target = Device.parse(device);
  const name = type === 'auto' ? await chooseCopier(target, [], {}) : type;
  const copier = registered(name);
  if (typeof copier === 'function') return { copier: name, available: true };
  const { backend } = copier;
  return { copier: name, ...(backend && { backend }), ...(await copier.availability(target)) };
}

/**
 * What 'auto' means for these files on this device, as fastsafetensors chooses: USRBIO where all files are on one 3FS
 * mount, else GPUDirect Storage where there is a direct path (unless `nogds`), else memory shared with the host, else
 * ordinary reads. Off the event loop; never rejects, and does not open the cuFile driver. @internal
 */
export async function chooseCopier(
  device: Device,
  files: readonly string[],
  options: { readonly nogds?: boolean },
  calls?: FileCalls,
): Promise<'3fs' | 'gds' | 'unified' | 'nogds'> {
  if ((await onThreeFs(files, calls)) && (await threeFsAvailability(calls)).available) return '3fs';
  if (device.type === 'cpu') return 'nogds';
  if (options.nogds !== true && (await gdsAvailability(device)).available) return 'gds';
  if ((await unifiedAvailability(device)).available) return 'unified';
  return 'nogds';
}

/**
 * What takes the place of a copier where that is not available, and why; undefined where it is. Off the event loop;
 * does not open the cuFile driver. UNKNOWN_COPIER. @internal
 */
export async function insteadOf(
  type: CopierType,
  device: Device,
): Promise<{ readonly copier: string; readonly reason: string } | undefined> {
  const copier = registered(type);
  if (typeof copier === 'function') return undefined;
  const { available, reason = 'it is not available' } = await copier.availability(device);
  return available ? undefined : { copier: await chooseCopier(device, [], { nogds: true }), reason };
}

/** True when there are files and all of them are on one 3FS mount. Never rejects. */
async function onThreeFs(files: readonly string[], calls?: FileCalls): Promise<boolean> {
  if (files.length === 0) return false;
  try {
    const resolve = () => native().resolveThreeFsMount(files, '', false);
    const { mountPoint, notOnMount } = await fileCall('the mount of', files[0]!, resolve, calls);
    return mountPoint !== '' && notOnMount.length === 0;
  } catch {
    return false;
  }
}

function registered(type: CopierType): Builtin | CopierFactory {
  const copier = registry.get(type) ?? ABSENT.get(type);
  if (!copier) throw unknown(type, registeredCopiers());
  return copier;
}

function unknown(type: string, known: readonly string[]): FastSafetensorsError {
  const message = `there is no copier ${describe(type)}; there are ${known.join(', ')}`;
  return new FastSafetensorsError('UNKNOWN_COPIER', message);
}

function absent(name: string): Builtin {
  const availability = {
    available: false,
    reason: `this package has no ${name}`,
    remedy: "use copier: 'gds' for GPUDirect Storage, or 'nogds'",
  };
  return {
    availability: async () => availability,
    spec: () => {
      throw new FastSafetensorsError('COPIER_UNAVAILABLE', `${availability.reason}; ${availability.remedy}`);
    },
  };
}
