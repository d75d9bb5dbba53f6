import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Ajv from 'ajv';
import type { FastSafetensorsError } from 'fastsafetensors-node';
import { CONFIG_KEYS, configOptions, readConfig } from '../src/loaders/config.js';
import { testFolder } from './support/tensor-files.js';

// The schema that the package ships accepts what the parser accepts, key by key and value by value.

const folder = testFolder();
const SCHEMA = JSON.parse(readFileSync(join(__dirname, '../fastsafetensors.schema.json'), 'utf8'));
const validates = new Ajv().compile(SCHEMA);

function parses(document: object): boolean {
  const path = join(folder, 'c.json');
  writeFileSync(path, JSON.stringify(document));
  try {
    configOptions(readConfig({ path }, () => {}));
  } catch (error) {
    return (error as FastSafetensorsError).code === 'UNKNOWN_COPIER'; // the schema does not know who is registered
  }
  return true;
}

const snakeCase = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const sectionOf = (name: string) => {
  const at = name === '' ? SCHEMA : SCHEMA.properties[name];
  return (at.$ref ? SCHEMA.definitions.common : at).properties as Record<string, unknown>;
};

test.each(Object.entries(CONFIG_KEYS))('"%s" has the keys of the parser, in both spellings', (section, keys) => {
  const both = new Set(keys.flatMap((key) => [key, snakeCase(key)]));
  if (section === '') for (const name of ['$schema', ...Object.keys(CONFIG_KEYS)]) if (name !== '') both.add(name);
  expect(Object.keys(sectionOf(section)).sort()).toEqual([...both].sort());
});

const NUMBERS = [-70000, -65536, -2, -1, 0, 1, 1.5, 2, 4, 1024, 1025, 4095, 4096, 65536, 65537, 2 ** 20, 2 ** 20 + 1];
const VALUES: readonly unknown[] = [
  ...[null, true, false, [], ...NUMBERS, 2 ** 53 - 1, 2 ** 53],
  ...['', ' ', 'x', 'auto', 'file', 'ready', 'base', '3fs', 'pt', 'torch', 'nogds', '1'],
];
const CASES = Object.entries(CONFIG_KEYS).flatMap(([section, keys]) => keys.map((key) => [section, key] as const));

test.each(CASES)('"%s", %s: the same values', (section, key) => {
  // Beside it what some values ask for; a whole object stands for a section, at the top.
  const beside = { loader: section === '3fs' ? '3fs' : 'base', max_batch_bytes: 64 };
  const accepted: unknown[] = [];
  for (const value of section === '' ? VALUES : [...VALUES, {}]) {
    for (const name of [key, snakeCase(key)]) {
      const document = section === '' ? { ...beside, [name]: value } : { ...beside, [section]: { [name]: value } };
      const [schema, parser] = [validates(document), parses(document)];
      expect({ [name]: value, accepted: schema }).toEqual({ [name]: value, accepted: parser });
      if (schema) accepted.push(value);
    }
  }
  expect(accepted.length).toBeGreaterThan(0);
});

test('what nothing reads is flagged, sections of copiers of one’s own are not', () => {
  expect(validates({ parallel: { speed: 9 } })).toBe(false);
  expect(validates({ speed: 9 })).toBe(false);
  expect(validates({ $schema: './fastsafetensors.schema.json', s3: { bucket: 'b' } })).toBe(true);
  const guide: Record<string, object | null> = JSON.parse(
    readFileSync(join(__dirname, 'parity/configurations.json'), 'utf8'),
  );
  const written = Object.entries(guide).filter(([name, config]) => name.startsWith('guide') && config);
  expect(written).toHaveLength(6);
  for (const [, config] of written) expect(validates(config)).toBe(true);
});
