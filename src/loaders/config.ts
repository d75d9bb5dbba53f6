import * as check from '../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { readRegularFileSync } from '../base/regular-file.js';
import { isOwn } from '../copiers/registry.js';
import { checkMemoryLimit } from './budget.js';
import { checkOption, type ParallelOptions } from './options.js';

const VARIABLE = 'FASTSAFETENSORS_CONFIG';
const DEFAULT_FILE = 'fastsafetensors.json';
const MAX_BYTES = 16 * 1024 * 1024;

type Section = Record<string, unknown>;
type Options = Partial<ParallelOptions>;

/** What keys stand for, those included that become options only together. */
interface Settings extends Options {
  usePipeline?: boolean;
  copierType?: string;
  useFgds?: boolean;
  useChunkBudgetAsAllocationSize?: boolean;
}

/** What a value stands for; `name` says whose it is. INVALID_ARGUMENT for what no option would refuse later. */
type Key = (value: unknown, name: string) => Settings;
type Keys = Readonly<Record<string, Key>>;

/** Keys that stand at the top, in `parallel` or in `debug`, it does not matter where, as in fastsafetensors. */
const COMMON: Keys = {
  ...options('debugLog', 'setNuma', 'queueSize', 'order', 'progress'),
  useTqdmOnLoad: (progress) => ({ progress }) as Settings,
  usePipeline: checked('usePipeline', check.boolean),
  // JSON's null is Python's None: no limit.
  maxBatchBytes: (value) => ({ maxBatchBytes: value ?? undefined }) as Settings,
  deviceMemoryBudget: (value, name) => {
    if (value !== null) checkMemoryLimit(value, name);
    return { deviceMemoryBudget: value ?? undefined } as Settings;
  },
  useChunkBudgetAsAllocationSize: checked('useChunkBudgetAsAllocationSize', check.boolean),
  // A cache of tensors that ranks have exchanged, which there is none of here: nothing to do with the page cache.
  disableCache: nothing(check.boolean),
  maxConcurrentProducers: nothing((value, name) => {
    if (value !== 1) check.fail(name, '1: one producer reads with many threads', value);
  }),
};

/** Keys in the section of a loader, which is used where `loader` names it. */
const OF_LOADER: Readonly<Record<string, Keys>> = {
  base: {
    ...options('nogds', 'maxThreads', 'odirect', 'mmap', 'dropCache', 'checksum'),
    copierType: checked('copierType', check.text),
    useFgds: checked('useFgds', check.boolean),
    bbufSizeKb: (value, name) => {
      check.integer(4, 2 ** 20)(value, name);
      return { bounceBufferSize: (value as number) * 1024 };
    },
  },
  '3fs': options('mountPoint', 'entries', 'ioDepth', 'bufferSize'),
};

/** Names that fastsafetensors has for frameworks. They say nothing here: frameworks are objects, given in code. */
const FRAMEWORKS: readonly unknown[] = ['pt', 'pytorch', 'torch', 'paddle'];
const GROUPS: readonly string[] = ['parallel', 'debug'];
const SECTIONS: readonly string[] = [...GROUPS, ...Object.keys(OF_LOADER)];
const SCALARS: readonly string[] = ['loader', 'framework'];

/** Every key that means something, by section; '' for the top. For the test of the schema. */
export const CONFIG_KEYS: Readonly<Record<string, readonly string[]>> = {
  '': [...SCALARS, ...Object.keys(COMMON)],
  ...Object.fromEntries(GROUPS.map((group) => [group, Object.keys(COMMON)])),
  ...Object.fromEntries(Object.entries(OF_LOADER).map(([loader, keys]) => [loader, Object.keys(keys)])),
};

/** A configuration as it was read, in the order of its file. */
export interface Configuration {
  /** For messages: the file, or that there was none. */
  readonly source: string;
  readonly fields: Record<string, unknown>;
}

/**
 * The configuration: the file `path`, else the one that FASTSAFETENSORS_CONFIG names, where that is not empty, else
 * ./fastsafetensors.json, else defaults. Sections are returned as they are in the file, unknown ones too (for
 * extensions), and so are known keys; other fields are left out. IO_ERROR when a file that was named cannot be read,
 * INVALID_ARGUMENT when it holds no JSON object. What the keys mean: docs/configuration.md; a schema is
 * 'fastsafetensors-node/fastsafetensors.schema.json'.
 */
export function loadConfig(options: { path?: string | URL } = {}): Record<string, unknown> {
  check.takesAtMost(1, arguments, 'loadConfig');
  return readConfig(options, () => {}).fields;
}

/** loadConfig() that says where it read, and reports what it leaves out: by `warn` what was meant to be a section. */
export function readConfig(
  options: { path?: string | URL },
  debug: (message: string) => void,
  warn: (message: string) => void = () => {},
): Configuration {
  const given = check.checkOptions(options, { path: check.pathOf });
  const named = given.path ?? (process.env[VARIABLE] || undefined);
  const path = named === undefined ? DEFAULT_FILE : check.pathOf(named, given.path === undefined ? VARIABLE : 'path');
  const fields: Record<string, unknown> = {};
  const result = (source: string): Configuration => {
    // Behind what the file says: of what it says twice, the last counts.
    for (const section of SECTIONS) if (!Object.hasOwn(fields, section)) fields[section] = {};
    if (!Object.hasOwn(fields, 'loader')) fields.loader = 'base';
    return { source, fields };
  };
  let content: string;
  try {
    content = readRegularFileSync(path, MAX_BYTES).toString();
  } catch (cause) {
    if (named === undefined && (cause as NodeJS.ErrnoException).code === 'ENOENT') return result('no configuration');
    const who = given.path === undefined && named !== undefined ? ` (named by ${VARIABLE})` : '';
    const message = `cannot read the configuration ${path}${who}: ${(cause as Error).message}`;
    throw new FastSafetensorsError('IO_ERROR', message, { path, cause });
  }
  for (const [key, value] of Object.entries(parse(path, content))) {
    if (isSection(value) || SCALARS.includes(key) || Object.hasOwn(COMMON, camelCase(key))) {
      const copy = isSection(value) ? { ...value } : value;
      Object.defineProperty(fields, key, { value: copy, enumerable: true, writable: true, configurable: true });
    } else if (SECTIONS.includes(key)) {
      warn(`${path}: "${key}" is ignored: expected an object, found ${check.describe(value)}`);
    } else if (key !== '$schema') {
      debug(`${path}: unknown field "${key}" is ignored`);
    }
  }
  return result(path);
}

function parse(path: string, text: string): Section {
  if (/^(?:\ufffd\ufffd|[^\0]\0|\0[^\0])/.test(text))
    throw new InvalidArgumentError(`${path}: expected JSON in UTF-8, found UTF-16: save it as UTF-8`);
  let parsed: unknown;
  try {
    parsed = JSON.parse(text.replace(/^\ufeff/, '')); // a byte order mark, as editors on Windows write it
  } catch (error) {
    throw new InvalidArgumentError(`${path}: expected JSON: ${(error as Error).message}`);
  }
  if (!isSection(parsed)) throw new InvalidArgumentError(`${path}: expected a JSON object`);
  return parsed;
}

/**
 * `given`, the options in code, and what a configuration stands for where they say nothing. Unknown fields are
 * reported. INVALID_ARGUMENT for an unknown loader or framework and for wrong values, UNKNOWN_COPIER.
 */
export function configOptions(
  { source, fields }: Configuration,
  given: Options = {},
  debug: (message: string) => void = () => {},
): Options {
  const { loader, framework = 'pytorch' } = fields;
  if (typeof loader !== 'string' || !Object.hasOwn(OF_LOADER, loader)) {
    check.fail(`"loader" in ${source}`, `one of ${Object.keys(OF_LOADER).join(', ')}`, loader);
  }
  if (!FRAMEWORKS.includes(framework)) {
    const expected = `one of ${FRAMEWORKS.join(', ')} (and here the option framework: onnxruntime(ort), tfjs(tf))`;
    check.fail(`"framework" in ${source}`, expected, framework);
  }
  const settings: Settings = {};
  const names: Record<string, string> = {};
  const take = (keys: Keys, key: string, value: unknown, where: string): void => {
    const camel = camelCase(key);
    if (!Object.hasOwn(keys, camel)) {
      debug(`${source}: unknown field "${where}" is ignored`);
      return;
    }
    const name = `"${where}" in ${source}`;
    const made = keys[camel]!(value, name);
    Object.assign(settings, made);
    for (const option of Object.keys(made)) names[option] = name;
  };
  for (const [key, value] of Object.entries(fields)) {
    if (GROUPS.includes(key)) {
      for (const [inner, its] of Object.entries(value as Section)) take(COMMON, inner, its, `${key}.${inner}`);
    } else if (!SCALARS.includes(key) && !isSection(value)) {
      take(COMMON, key, value, key);
    }
  }
  for (const [key, value] of Object.entries(fields[loader] as Section)) {
    take(OF_LOADER[loader]!, key, value, `${loader}.${key}`);
  }
  const { usePipeline, copierType, useFgds, useChunkBudgetAsAllocationSize, ...found } = settings;
  if (useChunkBudgetAsAllocationSize && found.maxBatchBytes === undefined && found.deviceMemoryBudget === undefined) {
    throw new InvalidArgumentError(
      `${names.useChunkBudgetAsAllocationSize}: expected max_batch_bytes or device_memory_budget beside it`,
    );
  }
  if (usePipeline === false) found.queueSize = -1;
  if (given.copier === undefined) {
    const { copier, fallback } = loader === '3fs' ? { copier: '3fs' } : copierOf(copierType, useFgds);
    Object.assign(found, { copier, fallback });
    names.copier = names.fallback = useFgds ? names.useFgds! : names.copierType!;
  }
  const merged: Section = { ...given };
  for (const [option, value] of Object.entries(found)) {
    if (value === undefined || merged[option] !== undefined) continue;
    checkOption(option as keyof Options, value, names[option] ?? option);
    merged[option] = value;
  }
  const { copier = 'auto', copierOptions = {} } = merged as Options;
  const section = fields[copier];
  if (isSection(section) && isSection(copierOptions) && isOwn(copier)) {
    merged.copierOptions = { ...section, ...copierOptions };
  }
  return merged;
}

/** A preference: what is not available falls back to ordinary reads, which the report says. */
function copierOf(type: string | undefined, fgds: boolean | undefined): Pick<Options, 'copier' | 'fallback'> {
  const copier = fgds && (type === undefined || type === 'gds') ? 'fgds' : type;
  if (copier === undefined || ['auto', 'nogds'].includes(copier) || isOwn(copier)) return { copier };
  return { copier, fallback: 'nogds' };
}

/** Keys that are called as their options. */
function options(...names: (keyof ParallelOptions)[]): Keys {
  return Object.fromEntries(names.map((name) => [name, (value: unknown) => ({ [name]: value })]));
}

function checked(name: keyof Settings, checks: check.Check): Key {
  return (value, where) => {
    checks(value, where);
    return { [name]: value };
  };
}

/** A key that fastsafetensors has and that changes nothing here. */
function nothing(checks: check.Check): Key {
  return (value, where) => {
    checks(value, where);
    return {};
  };
}

/** Keys may be spelled as in fastsafetensors, or as options are here. */
function camelCase(key: string): string {
  return key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function isSection(value: unknown): value is Section {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
