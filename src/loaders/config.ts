import { checkOptions, pathOf } from '../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { readRegularFileSync } from '../base/regular-file.js';
import type { ParallelOptions } from './options.js';

const VARIABLE = 'FASTSAFETENSORS_CONFIG';
const DEFAULT_FILE = 'fastsafetensors.json';
const MAX_BYTES = 16 * 1024 * 1024;

type Section = Record<string, unknown>;
type Keys = Readonly<Record<string, (value: unknown) => Partial<ParallelOptions>>>;

/**
 * Keys of the file by section, and the options that they stand for. Keys may also be spelled in snake_case, as in
 * fastsafetensors.
 */
const KEYS: Readonly<Record<string, Keys>> = {
  parallel: {
    ...named('queueSize', 'maxBatchBytes', 'order', 'progress'),
    usePipeline: (value) => (value === false ? { queueSize: -1 } : {}),
    useTqdmOnLoad: (value) => ({ progress: value as boolean }),
  },
  debug: {
    ...named('debugLog', 'setNuma'),
    disableCache: (value) => ({ dropCache: value as boolean }),
  },
  base: {
    ...named('nogds', 'maxThreads'),
    copierType: (value) => ({ copier: value as string }),
    bbufSizeKb: (value) => ({ bounceBufferSize: (value as number) * 1024 }),
  },
  '3fs': named('mountPoint', 'entries', 'ioDepth', 'bufferSize'),
};
/** Loaders by their name in the file, which is that of their section, and what each means. */
const LOADERS: Readonly<Record<string, Partial<ParallelOptions>>> = { base: {}, '3fs': { copier: '3fs' } };
const SCALARS = ['loader', 'framework'];

/**
 * The configuration: the file `path`, else the one that FASTSAFETENSORS_CONFIG names, else ./fastsafetensors.json, else
 * defaults. Sections are returned as they are in the file, unknown ones too (for extensions); other unknown fields are
 * left out. IO_ERROR when a file that was named cannot be read, INVALID_ARGUMENT when it holds no JSON object.
 */
export function loadConfig(options: { path?: string | URL } = {}): Record<string, unknown> {
  return readConfig(options, () => {});
}

/** loadConfig() that reports what it leaves out. */
export function readConfig(
  options: { path?: string | URL },
  debug: (message: string) => void,
): Record<string, unknown> {
  const given = checkOptions(options, { path: pathOf });
  const named = given.path ?? process.env[VARIABLE];
  const path = named === undefined ? DEFAULT_FILE : pathOf(named, given.path === undefined ? VARIABLE : 'path');
  const config: Record<string, unknown> = { loader: 'base', parallel: {}, debug: {}, base: {}, '3fs': {} };
  let content: string;
  try {
    content = readRegularFileSync(path, MAX_BYTES).toString();
  } catch (cause) {
    if (named === undefined && (cause as NodeJS.ErrnoException).code === 'ENOENT') return config;
    const who = given.path === undefined && named !== undefined ? ` (named by ${VARIABLE})` : '';
    const message = `cannot read the configuration ${path}${who}: ${(cause as Error).message}`;
    throw new FastSafetensorsError('IO_ERROR', message, { path, cause });
  }
  for (const [key, value] of Object.entries(parse(path, content))) {
    if (isSection(value)) {
      Object.defineProperty(config, key, { value: { ...value }, enumerable: true, writable: true, configurable: true });
    } else if (SCALARS.includes(key)) {
      config[key] = value;
    } else {
      debug(`${path}: unknown field "${key}" is ignored`);
    }
  }
  return config;
}

function parse(path: string, text: string): Section {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new InvalidArgumentError(`${path}: expected JSON: ${(error as Error).message}`);
  }
  if (!isSection(parsed)) throw new InvalidArgumentError(`${path}: expected a JSON object`);
  return parsed;
}

/**
 * The options that a configuration stands for, not checked yet; unknown fields are reported. INVALID_ARGUMENT for an
 * unknown loader.
 */
export function configOptions(
  config: Record<string, unknown>,
  debug: (message: string) => void = () => {},
): Partial<ParallelOptions> {
  const loader = String(config.loader);
  if (!Object.hasOwn(LOADERS, loader)) {
    const expected = Object.keys(LOADERS).join(', ');
    throw new InvalidArgumentError(`configuration: loader is "${loader}", expected one of ${expected}`);
  }
  const options: Partial<ParallelOptions> = { ...LOADERS[loader] };
  for (const section of ['parallel', 'debug', loader]) {
    for (const [key, value] of Object.entries((config[section] as Section | undefined) ?? {})) {
      const name = key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
      // Common fields may stand in a loader's section too.
      const make = [KEYS[section]!, KEYS.debug!].find((keys) => Object.hasOwn(keys, name))?.[name];
      if (make) Object.assign(options, make(value));
      else debug(`configuration: unknown field "${section}.${key}" is ignored`);
    }
  }
  return options;
}

/** Keys of the file that are called as their options. */
function named(...options: (keyof ParallelOptions)[]): Keys {
  return Object.fromEntries(options.map((option) => [option, (value: unknown) => ({ [option]: value })]));
}

function isSection(value: unknown): value is Section {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
