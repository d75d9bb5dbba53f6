import { pathOf } from '../../src/base/checks.js';
import { InvalidArgumentError, ioError } from '../../src/base/errors.js';
import { readRegularFile } from '../../src/base/regular-file.js';
import type { OrtRunConfig, OrtSessionConfig } from '../../src/native/ort.js';
import type { Loose } from './types.js';

const LEVELS: Readonly<Record<string, number>> = { disabled: 0, basic: 1, extended: 2, layout: 3, all: 99 };
const MODES: Readonly<Record<string, boolean>> = { sequential: false, parallel: true };

/**
 * ort's SessionOptions as the core takes them. INVALID_ARGUMENT for values that ort's types do not allow; options of
 * other backends are ignored.
 */
export function sessionConfig(options: Loose): Partial<OrtSessionConfig> {
  const { graphOptimizationLevel: level, executionMode: mode, freeDimensionOverrides, enableProfiling } = options;
  const config: Record<string, unknown> = {};
  for (const name of ['intraOpNumThreads', 'interOpNumThreads', 'logSeverityLevel', 'logVerbosityLevel']) {
    config[name] = wholeNumber(name, options[name]);
  }
  for (const name of ['enableCpuMemArena', 'enableMemPattern']) config[name] = typed(name, options[name], 'boolean');
  for (const name of ['optimizedModelFilePath', 'logId']) config[name] = typed(name, options[name], 'string');
  const prefix = typed('profileFilePrefix', options.profileFilePrefix, 'string');
  if (typed('enableProfiling', enableProfiling, 'boolean')) config.profileFilePrefix = prefix ?? 'onnxruntime_profile_';
  if (level !== undefined) config.optimization = oneOf('graphOptimizationLevel', level, LEVELS);
  if (mode !== undefined) config.parallel = oneOf('executionMode', mode, MODES);
  if (freeDimensionOverrides) {
    const entries = Object.entries(typed('freeDimensionOverrides', freeDimensionOverrides, 'object')!);
    config.freeDimensions = entries.map(([name, size]) => [name, wholeNumber(`freeDimensionOverrides.${name}`, size)]);
  }
  config.entries = entriesOf(options);
  return config;
}

/** ort's RunOptions as the core takes them. INVALID_ARGUMENT. */
export function runConfig(options: Loose): OrtRunConfig {
  return {
    logSeverityLevel: wholeNumber('logSeverityLevel', options.logSeverityLevel),
    logVerbosityLevel: wholeNumber('logVerbosityLevel', options.logVerbosityLevel),
    tag: typed('tag', options.tag, 'string'),
    entries: entriesOf(options),
  };
}

function wholeNumber(name: string, value: unknown): number | undefined {
  if (value === undefined) return undefined;
  if (Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 31) return value as number;
  throw new InvalidArgumentError(`${name}: expected a whole number from 0 to 2147483647, found ${String(value)}`);
}

function typed<T>(name: string, value: T, type: 'boolean' | 'string' | 'object'): T | undefined {
  if (value === undefined || (typeof value === type && value !== null)) return value;
  const expected = type === 'object' ? 'an object' : `a ${type}`;
  throw new InvalidArgumentError(`${name}: expected ${expected}, found ${String(value)}`);
}

function oneOf<T>(name: string, value: string, choices: Readonly<Record<string, T>>): T {
  if (Object.hasOwn(choices, value)) return choices[value]!;
  const expected = `one of ${Object.keys(choices).join(', ')}`;
  throw new InvalidArgumentError(`${name}: expected ${expected}, found ${JSON.stringify(value)}`);
}

/** ort's extra: { session: { disable_prepacking: '1' } } → [['session.disable_prepacking', '1']] */
function entriesOf({ extra }: Loose): [string, string][] {
  return extra === undefined ? [] : flatten(typed('extra', extra, 'object'), 'extra', []);
}

function flatten(object: Record<string, unknown>, name: string, within: readonly unknown[]): [string, string][] {
  if (within.includes(object)) throw new InvalidArgumentError(`${name}: it contains itself`);
  return Object.entries(object).flatMap(([key, value]): [string, string][] => {
    const at = `${name}.${key}`;
    if (typeof value === 'object' && value !== null)
      return flatten(value as Record<string, unknown>, at, [...within, object]);
    if (!['string', 'number', 'boolean', 'bigint'].includes(typeof value))
      throw new InvalidArgumentError(`${at}: expected a string or an object, found ${String(value)}`);
    return [[at.slice('extra.'.length), String(value)]];
  });
}

/** ort's externalData: the bytes of files that the model names. INVALID_ARGUMENT, IO_ERROR. */
export async function externalFiles(list: Loose): Promise<{ path: string; data: Uint8Array }[]> {
  const files: { path: string; data: Uint8Array }[] = [];
  if (list !== undefined && !Array.isArray(list))
    throw new InvalidArgumentError(`externalData: expected an array, found ${String(list)}`);
  for (const entry of list ?? []) {
    const { path, data } = typeof entry === 'string' ? { path: entry, data: entry } : (entry ?? {});
    if (typeof path !== 'string')
      throw new InvalidArgumentError('externalData: expected paths, or objects { path, data }');
    files.push({ path, data: await bytesOf(path, data) });
  }
  return files;
}

async function bytesOf(path: string, data: unknown): Promise<Uint8Array> {
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  if (typeof data !== 'string')
    throw new InvalidArgumentError(`externalData: expected a path or bytes for ${JSON.stringify(path)}`);
  const file = pathOf(data, 'externalData');
  return readRegularFile(file).catch((cause) => {
    throw ioError('read', file, cause);
  });
}
