import { FastSafetensorsError, InvalidArgumentError } from '../../src/errors.js';
import type { OrtRunConfig, OrtSessionConfig } from '../../src/native.js';
import { readRegularFile } from '../../src/regular-file.js';
import type { Loose } from './types.js';

const LEVELS: Readonly<Record<string, number>> = { disabled: 0, basic: 1, extended: 2, layout: 3, all: 99 };
const MODES: Readonly<Record<string, boolean>> = { sequential: false, parallel: true };

/** ort's SessionOptions as the core takes them. INVALID_ARGUMENT for values that ort's types do not allow; what concerns other backends is left alone. */
export function sessionConfig(options: Loose): Partial<OrtSessionConfig> {
  const { graphOptimizationLevel: level, executionMode: mode, freeDimensionOverrides, extra } = options;
  const config: Record<string, unknown> = {};
  for (const name of ['intraOpNumThreads', 'interOpNumThreads', 'logSeverityLevel', 'logVerbosityLevel']) {
    config[name] = wholeNumber(name, options[name]);
  }
  for (const name of ['enableCpuMemArena', 'enableMemPattern']) config[name] = options[name];
  for (const name of ['optimizedModelFilePath', 'logId']) config[name] = options[name];
  if (options.enableProfiling) config.profileFilePrefix = options.profileFilePrefix ?? 'onnxruntime_profile_';
  if (level !== undefined) config.optimization = oneOf('graphOptimizationLevel', level, LEVELS);
  if (mode !== undefined) config.parallel = oneOf('executionMode', mode, MODES);
  if (freeDimensionOverrides) config.freeDimensions = Object.entries(freeDimensionOverrides);
  config.entries = extra ? flatten(extra) : [];
  return config;
}

/** ort's RunOptions. */
export function runConfig(options: Loose): OrtRunConfig {
  const { tag, extra } = options;
  return {
    logSeverityLevel: wholeNumber('logSeverityLevel', options.logSeverityLevel),
    logVerbosityLevel: wholeNumber('logVerbosityLevel', options.logVerbosityLevel),
    tag,
    entries: extra ? flatten(extra) : [],
  };
}

function wholeNumber(name: string, value: unknown): number | undefined {
  if (value === undefined) return undefined;
  if (Number.isInteger(value) && (value as number) >= 0) return value as number;
  throw new InvalidArgumentError(`${name}: expected a whole number from 0, found ${String(value)}`);
}

function oneOf<T>(name: string, value: string, choices: Readonly<Record<string, T>>): T {
  if (Object.hasOwn(choices, value)) return choices[value]!;
  throw new InvalidArgumentError(
    `${name}: expected one of ${Object.keys(choices).join(', ')}, found ${JSON.stringify(value)}`,
  );
}

/** { session: { disable_prepacking: '1' } } → [['session.disable_prepacking', '1']] */
function flatten(object: Record<string, unknown>, prefix = ''): [string, string][] {
  return Object.entries(object).flatMap(([key, value]) =>
    typeof value === 'object' && value !== null
      ? flatten(value as Record<string, unknown>, `${prefix}${key}.`)
      : [[`${prefix}${key}`, String(value)] as [string, string]],
  );
}

/** ort's externalData: files that the model names, in memory. */
export async function externalFiles(list: Loose): Promise<{ path: string; data: Uint8Array }[]> {
  const files: { path: string; data: Uint8Array }[] = [];
  for (const entry of list ?? []) {
    const { path, data } = typeof entry === 'string' ? { path: entry, data: entry } : entry;
    files.push({ path, data: await bytesOf(path, data) });
  }
  return files;
}

async function bytesOf(path: string, data: unknown): Promise<Uint8Array> {
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  if (typeof data !== 'string')
    throw new InvalidArgumentError(`externalData: expected a path or bytes for ${JSON.stringify(path)}`);
  return readRegularFile(data).catch((cause) => {
    throw new FastSafetensorsError('IO_ERROR', `cannot read ${data}: ${cause.message}`, { path: data, cause });
  });
}
