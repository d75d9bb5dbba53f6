import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AutoLoader, loadConfig, saveFile } from 'fastsafetensors-node';
import { configOptions, readConfig } from '../src/loaders/config.js';

let folder: string;
const before = { cwd: process.cwd(), variable: process.env.FASTSAFETENSORS_CONFIG };

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'config-'));
  process.chdir(folder);
  delete process.env.FASTSAFETENSORS_CONFIG;
});
afterEach(() => {
  process.chdir(before.cwd);
  if (before.variable === undefined) delete process.env.FASTSAFETENSORS_CONFIG;
  else process.env.FASTSAFETENSORS_CONFIG = before.variable;
  rmSync(folder, { recursive: true });
});

function write(name: string, content: unknown): string {
  const path = join(folder, name);
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

describe('loadConfig', () => {
  test('without a file gives defaults', () => {
    expect(loadConfig()).toEqual({ loader: 'base', parallel: {}, debug: {}, base: {}, '3fs': {} });
  });

  test('takes the file of the variable before the one in the working directory', () => {
    write('fastsafetensors.json', { base: { max_threads: 1 } });
    expect(loadConfig().base).toEqual({ max_threads: 1 });
    process.env.FASTSAFETENSORS_CONFIG = write('other.json', { base: { max_threads: 2 } });
    expect(loadConfig().base).toEqual({ max_threads: 2 });
    expect(loadConfig({ path: write('third.json', { base: { max_threads: 3 } }) }).base).toEqual({ max_threads: 3 });
  });

  test('a file that was named and is not there is an error that names the variable', () => {
    process.env.FASTSAFETENSORS_CONFIG = join(folder, 'missing.json');
    expect(() => loadConfig()).toThrow(
      expect.objectContaining({ code: 'IO_ERROR', message: expect.stringContaining('FASTSAFETENSORS_CONFIG') }),
    );
  });

  test.each(['{', '[]', '3', 'null'])('refuses %s', (text) => {
    expect(() => loadConfig({ path: write('bad.json', text) })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  test('keeps unknown objects and leaves unknown scalars out with a debug line', () => {
    const lines: string[] = [];
    const path = write('c.json', { s3: { bucket: 'b' }, speed: 9 });
    const config = readConfig({ path }, (line) => lines.push(line));
    expect(loadConfig({ path })).toEqual(config);
    expect(config.s3).toEqual({ bucket: 'b' });
    expect(config).not.toHaveProperty('speed');
    expect(lines.join()).toContain('"speed"');
  });

  test('a section named __proto__ touches no prototype', () => {
    const config = loadConfig({ path: write('p.json', '{"__proto__": {"polluted": 1}}') });
    expect(({} as { polluted?: number }).polluted).toBeUndefined();
    expect(Object.getPrototypeOf(config)).toBe(Object.prototype);
  });
});

describe('configOptions', () => {
  test.each([
    [
      { loader: '3fs', '3fs': { mount_point: '/m', entries: 8, io_depth: -1, buffer_size: 65536 } },
      { copier: '3fs', mountPoint: '/m', entries: 8, ioDepth: -1, bufferSize: 65536 },
    ],
    [
      { loader: 'base', base: { copier_type: 'nogds', bbuf_size_kb: 16, maxThreads: 3 } },
      { copier: 'nogds', bounceBufferSize: 16384, maxThreads: 3 },
    ],
    [{ loader: 'base', parallel: { use_pipeline: false } }, { queueSize: -1 }],
    [
      { loader: 'base', parallel: { use_pipeline: true, queue_size: 2, use_tqdm_on_load: false } },
      { queueSize: 2, progress: false },
    ],
    [
      { loader: 'base', debug: { debug_log: true, disable_cache: true } },
      { debugLog: true, dropCache: true },
    ],
    [{ loader: 'base', base: { debug_log: true }, '3fs': { entries: 1 } }, { debugLog: true }],
  ])('%j', (config, options) => {
    expect(configOptions(config)).toEqual(options);
  });

  test('refuses a loader that there is none of', () => {
    expect(() => configOptions({ loader: 'toString' })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});

describe('AutoLoader', () => {
  test('loads as the configuration says, and its options go first', async () => {
    const path = join(folder, 'w.safetensors');
    await saveFile([{ name: 'w', dtype: 'U8', shape: [3], data: Uint8Array.of(1, 2, 3) }], path);
    write('fastsafetensors.json', { base: { copier_type: 'no such copier' } });
    expect(() => new AutoLoader({ files: path })).toThrow(expect.objectContaining({ code: 'UNKNOWN_COPIER' }));
    const loader = new AutoLoader({ files: path, copier: 'nogds' });
    const found: [string, number[]][] = [];
    for await (const [name, tensor] of loader.iterateWeights()) found.push([name, [...(tensor.data as Uint8Array)]]);
    await loader.close();
    expect(found).toEqual([['w', [1, 2, 3]]]);
  });
});
