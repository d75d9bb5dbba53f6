import { homedir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { isMap } from 'node:util/types';
import { InvalidArgumentError } from './errors.js';
import { nearest, plain } from './nearest.js';
import { fromPython } from './python-names.js';

/** Throws INVALID_ARGUMENT, naming the option, when its value is wrong. */
export type Check = (value: unknown, name: string) => void;
/** The check of each option that there is. */
export type Checks = Readonly<Record<string, Check>>;

/** Throws INVALID_ARGUMENT: what was expected, and what was found. */
export function fail(name: string, expected: string, value: unknown): never {
  throw new InvalidArgumentError(`${name}: expected ${expected}, found ${describe(value)}`);
}

/** A value as messages show it: a text, number or null itself, of others the type. */
export function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value);
  if (typeof value === 'number') return String(value);
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'an array';
  return typeof value === 'object' && !isPlain(value) ? `an object of kind ${tagOf(value)}` : typeof value;
}

/** Not a Map, a URL, a Promise or the like, whose contents are no properties. Not by instanceof: see jest's realms. */
export function isPlain(value: object): boolean {
  return tagOf(value) === 'Object';
}

function tagOf(value: object): string {
  return Object.prototype.toString.call(value).slice('[object '.length, -1);
}

/**
 * INVALID_ARGUMENT for arguments after the last one that a function takes, which would be ignored; undefined is none.
 * Every public function that may throw calls it; what only ends a life (close, dispose) takes whatever it is given.
 */
export function takesAtMost(most: number, given: ArrayLike<unknown>, name: string): void {
  let { length } = given;
  while (length > most && given[length - 1] === undefined) --length;
  if (length <= most) return;
  const takes = most === 0 ? 'no argument' : most === 1 ? 'one argument' : `at most ${most} arguments`;
  const advice = 'options go together into one object, several paths into one array';
  throw new InvalidArgumentError(`${name}: expected ${takes}, found ${length} (${describe(given[most])}); ${advice}`);
}

/** Whether `for … of` runs over the items of a value: not of a text, of bytes, or of a Map, which has entries. */
export function isList(value: unknown): value is Iterable<unknown> {
  if (typeof value !== 'object' || value === null || !(Symbol.iterator in value)) return false;
  return !isMap(value) && !ArrayBuffer.isView(value) && tagOf(value) !== 'String';
}

/** The items of an array or another iterable, copied. INVALID_ARGUMENT for all else. */
export function listOf<T>(value: Iterable<T>, name: string, expected: string): T[] {
  if (!isList(value)) fail(name, expected, value);
  return [...value];
}

/**
 * The entries of an object, a Map, or an iterable of pairs as Object.entries() gives them. INVALID_ARGUMENT for all
 * else.
 */
export function entriesOf<K extends string | number, T>(
  value: Readonly<Record<K, T>> | Iterable<readonly [K, T]>,
  name: string,
  expected: string,
): [K | string, T][] {
  if (isMap(value) || isList(value)) {
    return Array.from(value, (pair: unknown) => {
      if (!Array.isArray(pair) || pair.length !== 2) fail(name, `${expected}, or pairs [key, value] of it`, pair);
      return [pair[0], pair[1]];
    });
  }
  if (typeof value !== 'object' || value === null || !isPlain(value)) fail(name, expected, value);
  return Object.entries(value);
}

export const boolean: Check = (value, name) => {
  if (typeof value !== 'boolean') fail(name, 'a boolean', value);
};
export const callback: Check = (value, name) => {
  if (typeof value !== 'function') fail(name, 'a function', value);
};
export const text: Check = (value, name) => {
  if (typeof value !== 'string' || value.includes('\0')) fail(name, 'a string', value);
};
export const path: Check = (value, name) => {
  if (typeof value !== 'string' || value === '' || value.includes('\0')) fail(name, 'a path', value);
};
export const integer =
  (least: number, most = Number.MAX_SAFE_INTEGER): Check =>
  (value, name) => {
    if (Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most) return;
    fail(name, `a whole number from ${least}${most === Number.MAX_SAFE_INTEGER ? '' : ` to ${most}`}`, value);
  };
export const positive: Check = (value, name) => {
  if (typeof value !== 'number' || !(value > 0)) fail(name, 'a positive number', value);
};
export const notNegative: Check = (value, name) => {
  if (typeof value !== 'number' || !(value >= 0)) fail(name, 'a number from 0', value);
};
export const oneOf =
  (...values: readonly unknown[]): Check =>
  (value, name) => {
    if (!values.includes(value))
      fail(name, values.map((v) => (typeof v === 'string' ? `'${v}'` : String(v))).join(' or '), value);
  };
export const methods =
  (expected: string, ...names: readonly string[]): Check =>
  (value, name) => {
    const object = value as Record<string, unknown> | null;
    if (typeof object !== 'object' || object === null || names.some((method) => typeof object[method] !== 'function'))
      fail(name, expected, value);
  };

/**
 * The path that a user gave: a string, in which a leading `~/` is the home folder, or a file: URL, as text or object.
 * INVALID_ARGUMENT for all else; other URLs are told to be downloaded.
 */
export function pathOf(value: unknown, name: string): string {
  const given = isUrl(value) ? value.href : value;
  path(given, name);
  const text = given as string;
  if (/^file:/i.test(text)) return pathOfUrl(text, name);
  if (isUrl(value) || /^[a-z][a-z0-9+.-]+:\/\/|^https?:\//i.test(text)) {
    const hub = /^(?:hf:\/+|https?:\/+(?:www\.)?(?:huggingface\.co|hf\.co)\/)([\w.-]+\/[\w.-]+)/i.exec(text)?.[1];
    const how = hub ? `with \`hf download ${hub}\`, and pass the folder that it prints` : 'and pass where it lies then';
    throw new InvalidArgumentError(`${name}: expected a path, found the URL ${text}; download it first, ${how}`);
  }
  return text === '~' || text.startsWith('~/') ? homeFolder() + text.slice(1) : text;
}

/** A switch in the environment: off as 0, false, no, off or nothing, else on; undefined where it is not set. */
export function environmentSwitch(variable: string): boolean | undefined {
  const value = process.env[variable];
  return value === undefined ? undefined : !/^(?:0|false|no|off|)$/i.test(value.trim());
}

/** As shells have it. */
export function homeFolder(): string {
  return process.env.HOME || homedir();
}

/** Not by instanceof: a URL may come from another realm. */
export function isUrl(value: unknown): value is URL {
  return typeof value === 'object' && value !== null && 'href' in value && typeof value.href === 'string';
}

function pathOfUrl(url: string, name: string): string {
  let found: string;
  try {
    found = fileURLToPath(url);
  } catch (error) {
    throw new InvalidArgumentError(
      `${name}: expected a file: URL of this machine, found ${url}: ${(error as Error).message}`,
    );
  }
  path(found, name);
  return found;
}

/** INVALID_ARGUMENT for what is not a string. */
export function checkTensorName(name: unknown): void {
  if (typeof name !== 'string') fail('name', 'the name of a tensor', name);
}

/**
 * Checks the names and values of options; undefined means not given. INVALID_ARGUMENT for a wrong value, or for an
 * unknown name, with the nearest right name if one is near and all of them otherwise. `elsewhere` has the options that
 * belong to something else, and to what. Returns the copy that was checked, to be used in place of `options`: a getter
 * may answer differently the next time.
 */
export function checkOptions<T>(
  options: T,
  checks: Checks,
  elsewhere: Readonly<Record<string, string>> = {},
  what = 'options',
): NonNullable<T> {
  if (options === undefined) return {} as NonNullable<T>;
  const copy = plainCopy(options, what);
  for (const [name, value] of Object.entries(copy)) {
    const check = Object.hasOwn(checks, name) ? checks[name] : undefined;
    if (!check)
      throw new InvalidArgumentError(`there is no option "${name}"${hint(name, Object.keys(checks), elsewhere)}`);
    if (value !== undefined) check(value, name);
  }
  return copy;
}

/** A copy of an object. INVALID_ARGUMENT for all else: a Map, a URL or a Promise would be taken for an empty one. */
export function plainCopy<T>(value: T, name: string, expected = 'an object'): NonNullable<T> {
  if (typeof value !== 'object' || value === null || !isPlain(value)) fail(name, expected, value);
  return { ...value };
}

/** What to do about an unknown name, to be appended to a message. */
export function hint(name: string, own: readonly string[], elsewhere: Readonly<Record<string, string>> = {}): string {
  if (Object.hasOwn(elsewhere, name)) return ` here: it is one of ${elsewhere[name]}`;
  const python = fromPython(plain(name));
  if (python && own.includes(python.option)) return `; that of fastsafetensors is ${python.says}`;
  if (python && Object.hasOwn(elsewhere, python.option)) {
    return `; that of fastsafetensors is ${python.says}; ${python.option} is one of ${elsewhere[python.option]}`;
  }
  const near = nearest(name, [...own, ...Object.keys(elsewhere)]);
  if (near === undefined) return own.length === 1 ? `; the only one is "${own[0]}"` : `; there are ${own.join(', ')}`;
  return `; did you mean "${near}"?${own.includes(near) ? '' : ` That is one of ${elsewhere[near]}`}`;
}
