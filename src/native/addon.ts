/** The only file that loads the addon. Native errors become FastSafetensorsErrors here. */
import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { explainErrorsBy, FastSafetensorsError } from '../base/errors.js';
import { held } from '../base/timers.js';
import type { FileCalls } from '../base/waiting.js';
import type { CoreAddon, FileKind, StatusObject } from './core.js';
import { addonMissing } from './missing-addon.js';
import type { OrtAddon } from './ort.js';
import type { TfAddon } from './tf.js';

interface Addon extends CoreAddon, OrtAddon, TfAddon {}

let addon: Addon | undefined;

/** Where package.json lies. */
export function packageFolder(): string {
  const here = typeof __dirname === 'string' ? __dirname : process.cwd(); // bundled as an ES module there is none
  let folder = here;
  while (!existsSync(join(folder, 'package.json'))) {
    const parent = dirname(folder);
    if (parent === folder) return here;
    folder = parent;
  }
  return folder;
}

/** Path of the binary that was loaded. */
let loaded = '';

function load(): Addon {
  const supported = process.platform === 'linux' && (process.arch === 'x64' || process.arch === 'arm64');
  if (!supported) {
    const message =
      `fastsafetensors-node reads and loads weights on Linux x64 and arm64, this is ${process.platform} ` +
      `${process.arch}; what works everywhere: importing it, its types, saveFile, and copiers that are called by ` +
      'themselves';
    throw new FastSafetensorsError('PLATFORM_UNSUPPORTED', message);
  }
  const folder = packageFolder();
  // A developer's build first: where one exists, it is meant.
  const asked = process.env.FASTSAFETENSORS_NATIVE ? resolve(process.env.FASTSAFETENSORS_NATIVE) : undefined;
  const built = join(folder, 'build', 'cmake', 'Release', 'fastsafetensors.node');
  let path = asked ?? (existsSync(built) ? built : undefined);
  try {
    path ??= (require('node-gyp-build') as { resolve(folder: string): string }).resolve(folder);
    const addon = require(path) as Addon;
    loaded = path;
    return addon;
  } catch (cause) {
    const refused = path === undefined ? undefined : { path, error: cause as Error };
    throw addonMissing(folder, { asked, built, refused, cause });
  }
}

/** Path of the addon's binary; loads it. PLATFORM_UNSUPPORTED, ADDON_MISSING. */
export function addonPath(): string {
  native();
  return loaded;
}

/** The addon, loaded when it is first needed: importing the package works on every platform. */
export function native(): Addon {
  addon ??= load();
  return addon;
}

explainErrorsBy((path, errno) => addon?.deadThreeFs(resolve(path), errno) ?? '');

/** The package's error for a status object. Its stack begins here, in the caller's turn of the event loop. */
export function statusError(status: StatusObject): FastSafetensorsError {
  return new FastSafetensorsError(status.code, status.message, status);
}

function isStatus(value: unknown): value is StatusObject {
  return (
    typeof value === 'object' && value !== null && !(value instanceof Error) && 'code' in value && 'message' in value
  );
}

/**
 * Awaits a native promise; a status object that it rejects with becomes the package's error. The event loop stays alive
 * until then: native work alone does not keep it so.
 */
export function settled<T>(promise: Promise<T>): Promise<T> {
  return held(translated(promise));
}

/** settled() for work that somebody else waits for, with a limit: it does not keep the event loop alive. */
export async function translated<T>(promise: Promise<T>): Promise<T> {
  try {
    return await promise;
  } catch (error) {
    throw isStatus(error) ? statusError(error) : error;
  }
}

/** Calls a native function; a status object that it throws becomes the package's error. */
export function checked<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw isStatus(error) ? statusError(error) : error;
  }
}

/** What a path leads to, or what a folder has, as node:fs tells it. */
export interface FileInfo {
  readonly name: string;
  isFile(): boolean;
  isDirectory(): boolean;
  isSymbolicLink(): boolean;
}

const infoOf = (name: string, kind: FileKind): FileInfo => ({
  name,
  isFile: () => kind === 'file',
  isDirectory: () => kind === 'folder',
  isSymbolicLink: () => kind === 'link',
});

/** settled() for a call on a file: through what limits it, where there is such. For `what` see FileCalls. */
export function fileCall<T>(
  what: string,
  path: string | (() => string),
  begin: () => Promise<T>,
  calls?: FileCalls,
  moved?: () => number,
): Promise<T> {
  return calls ? calls.call(what, path, () => translated(begin()), moved) : settled(begin());
}

/** Rejects as functions of node:fs do: with an Error whose `code` is the name of the system's error. */
async function systemCall<T>(what: string, path: string, begin: () => Promise<T>, calls?: FileCalls): Promise<T> {
  try {
    return await (calls ? calls.call(what, path, begin) : held(begin()));
  } catch (error) {
    if (!isStatus(error)) throw error;
    const { message, path, code, errno = code } = error;
    throw Object.assign(new Error(message), { code: errno, path });
  }
}

// In place of those of node:fs/promises wherever weights may lie: a store that hangs would hold a thread of libuv, and
// process.exit() waits for those.

export async function stat(
  path: string,
  calls?: FileCalls,
): Promise<FileInfo & Omit<Awaited<ReturnType<Addon['statFile']>>, 'kind'>> {
  const { kind, ...numbers } = await systemCall('a look at', path, () => native().statFile(path), calls);
  return { ...infoOf(path, kind), ...numbers };
}

export async function readdir(folder: string, calls?: FileCalls): Promise<FileInfo[]> {
  const { names, kinds } = await systemCall('the names in', folder, () => native().listFolder(folder), calls);
  return names.map((name, i) => infoOf(name, kinds[i]!));
}

export function realpath(path: string, calls?: FileCalls): Promise<string> {
  return systemCall('the links of', path, () => native().realPath(path), calls);
}

export function readlink(path: string, calls?: FileCalls): Promise<string> {
  return systemCall('the link', path, () => native().readLink(path), calls);
}

/** The bytes of a regular file; rejects for more than `maxBytes`. */
export async function readFile(path: string, maxBytes: number, calls?: FileCalls): Promise<Uint8Array> {
  return new Uint8Array(await systemCall('the bytes of', path, () => native().readFile(path, maxBytes), calls));
}
