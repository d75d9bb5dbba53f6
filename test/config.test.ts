import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  AutoLoader,
  createCopierConstructor,
  type Logger,
  loadConfig,
  registerCopier,
  saveFile,
} from 'fastsafetensors-node';
import { configOptions, readConfig } from '../src/loaders/config.js';

let folder: string;
const of = (fields: Record<string, unknown>) => ({
  source: 'c.json',
  fields: { loader: 'base', base: {}, '3fs': {}, ...fields },
});
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

  test('an empty variable names none', () => {
    write('fastsafetensors.json', { base: { max_threads: 1 } });
    process.env.FASTSAFETENSORS_CONFIG = '';
    expect(loadConfig().base).toEqual({ max_threads: 1 });
  });

  test('may begin with a byte order mark; UTF-16 is named', () => {
    expect(loadConfig({ path: write('mark.json', '\ufeff{"base":{"max_threads":4}}') }).base).toEqual({
      max_threads: 4,
    });
    for (const [name, bytes] of [
      ['little.json', Buffer.from('\ufeff{}', 'utf16le')],
      ['big.json', Buffer.from('\ufeff{}', 'utf16le').swap16()],
      ['bare.json', Buffer.from('{}', 'utf16le')],
    ] as const) {
      const path = join(folder, name);
      writeFileSync(path, bytes);
      expect(() => loadConfig({ path })).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('save it as UTF-8') }),
      );
    }
  });

  test.each(['{', '[]', '3', 'null'])('refuses %s', (text) => {
    expect(() => loadConfig({ path: write('bad.json', text) })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  test('keeps unknown objects and leaves unknown scalars out with a debug line', () => {
    const lines: string[] = [];
    const path = write('c.json', { s3: { bucket: 'b' }, speed: 9 });
    const { fields: config } = readConfig({ path }, (line) => lines.push(line));
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
      { base: { copier_type: 'nogds', bbuf_size_kb: 16, maxThreads: 3 } },
      { copier: 'nogds', bounceBufferSize: 16384, maxThreads: 3 },
    ],
    [{ parallel: { use_pipeline: false } }, { queueSize: -1 }],
    [{ queueSize: 3, usePipeline: false }, { queueSize: -1 }],
    [{ parallel: { use_pipeline: true, queue_size: 2, use_tqdm_on_load: false } }, { queueSize: 2, progress: false }],
    [{ debug: { debug_log: true, disable_cache: true } }, { debugLog: true }],
    [{ base: { drop_cache: true, odirect: true } }, { dropCache: true, odirect: true }],
    [{ base: { copier_type: 'gds' } }, { copier: 'gds', fallback: 'nogds' }],
    [{ order: 'ready', parallel: { max_batch_bytes: null } }, { order: 'ready' }],
    [{ framework: 'paddle', '3fs': { entries: 1 } }, {}],
  ])('%j', (config, options) => {
    expect(configOptions(of(config))).toEqual(options);
  });

  test('refuses a loader that there is none of', () => {
    expect(() => configOptions(of({ loader: 'toString' }))).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  test.each([
    [{ parallel: { queue_size: '2' } }, '"parallel.queue_size" in c.json: expected a whole number'],
    [{ queue_size: null }, '"queue_size" in c.json: '],
    [{ debug: { disable_cache: 1 } }, '"debug.disable_cache" in c.json: expected a boolean, found 1'],
    [{ max_concurrent_producers: 2 }, '"max_concurrent_producers" in c.json: expected 1'],
    [
      { parallel: { device_memory_budget: 0 } },
      '"parallel.device_memory_budget" in c.json: expected a number of bytes',
    ],
    [{ base: { bbuf_size_kb: 2 } }, '"base.bbuf_size_kb" in c.json: expected a whole number from 4'],
    [{ base: { copier_type: 'nvme' } }, '"base.copier_type" in c.json: "nvme" is not registered'],
    [{ base: { drop_cache: 'yes' } }, '"base.drop_cache" in c.json: expected a boolean'],
    [{ loader: 's3' }, '"loader" in c.json: expected one of base, 3fs, found "s3"'],
    [{ loader: {} }, '"loader" in c.json: expected one of base, 3fs, found object'],
    [{ framework: 'jax' }, '"framework" in c.json: expected one of pt, pytorch, torch, paddle'],
  ])('%j: the message says where', (config, message) => {
    expect(() => configOptions(of(config))).toThrow(message);
  });

  test('what code says is not looked for in the file', () => {
    const file = { queue_size: 'x', base: { copier_type: 'nvme', max_threads: 2 } };
    expect(configOptions(of(file), { queueSize: 1, copier: 'nogds', maxThreads: undefined })).toEqual({
      queueSize: 1,
      copier: 'nogds',
      maxThreads: 2,
    });
    // Nor is the fallback of a copier that the file prefers.
    expect(configOptions(of({ base: { copier_type: 'gds' } }), { copier: 'unified' })).toEqual({ copier: 'unified' });
  });

  test('reports fields that mean nothing', () => {
    const lines: string[] = [];
    configOptions(of({ parallel: { speed: 9 }, base: { queue_size: 1, debug_log: true } }), {}, (line) =>
      lines.push(line),
    );
    expect(lines).toEqual([
      'c.json: unknown field "parallel.speed" is ignored',
      'c.json: unknown field "base.queue_size" is ignored',
      'c.json: unknown field "base.debug_log" is ignored',
    ]);
  });
});

describe('a copier of the user’s own', () => {
  let seen: Readonly<Record<string, unknown>>[] = [];
  beforeEach(() => {
    seen = [];
    registerCopier('store', (_, options) => {
      seen.push(options);
      return () => ({ submitIo: () => undefined, waitIo: async () => {}, close: async () => {} });
    });
  });
  const load = async (options: object): Promise<void> => {
    const path = join(folder, 'w.safetensors');
    await saveFile([{ name: 'w', dtype: 'U8', shape: [0], data: new Uint8Array() }], path);
    const loader = new AutoLoader({ files: path, ...options });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
  };

  test('its factory is given its section of the file, and what code says over it', async () => {
    write('fastsafetensors.json', { base: { copier_type: 'store' }, store: { bucket: 'b', retries: 3 } });
    await load({});
    expect(seen.at(-1)).toMatchObject({ copier: 'store', bucket: 'b', retries: 3 });
    await load({ copierOptions: { retries: 4, region: 'r' } });
    expect(seen.at(-1)).toMatchObject({ bucket: 'b', retries: 4, region: 'r' });
  });

  test('also where code chose it', async () => {
    write('fastsafetensors.json', { store: { bucket: 'b' }, base: { copier_type: 'nogds' } });
    await load({ copier: 'store' });
    expect(seen.at(-1)).toMatchObject({ bucket: 'b' });
    await load({});
    expect(seen).toHaveLength(1);
  });

  test('copierOptions are given in code alone, too; built-in copiers have none', async () => {
    createCopierConstructor('store', 'cpu', { copierOptions: { bucket: 'c' }, maxThreads: 1 });
    expect(seen.at(-1)).toMatchObject({ bucket: 'c', maxThreads: 1 });
    await load({ copier: 'store', copierOptions: { bucket: 'd' } });
    expect(seen.at(-1)).toMatchObject({ bucket: 'd' });
    const refused = expect.objectContaining({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching('copierOptions'),
    });
    await expect(load({ copierOptions: {} })).rejects.toEqual(refused);
    expect(() => createCopierConstructor('gds', 'cpu', { copierOptions: {} })).toThrow(refused);
    for (const wrong of [null, 3, 'x', []])
      await expect(load({ copier: 'store', copierOptions: wrong })).rejects.toEqual(refused);
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
    for await (const [name, tensor] of loader.iterateWeights()) {
      found.push([name, [...(tensor.data as Uint8Array)]]);
      tensor.dispose();
    }
    await loader.close();
    expect(found).toEqual([['w', [1, 2, 3]]]);
  });

  test('shows its configuration, and says once what it comes to', async () => {
    const path = write('fastsafetensors.json', {
      $schema: 'fastsafetensors.schema.json',
      parallel: { use_pipeline: false },
      base: { copier_type: 'gds' },
      s3: { bucket: 'b' },
    });
    process.env.FASTSAFETENSORS_CONFIG = path;
    const lines: string[] = [];
    const logger: Logger = { debug: (line) => lines.push(line), info: (line) => lines.push(line), warn() {} };
    const loader = new AutoLoader({ files: ['a', 'b'], logger });
    expect(loader.config).toEqual(loadConfig());
    expect(loader.config).toMatchObject({ loader: 'base', base: { copier_type: 'gds' }, s3: { bucket: 'b' } });
    expect(lines).toEqual([
      `fastsafetensors: AutoLoader by ${path}: loader=base, device=cpu, files=2, copier=gds, ` +
        'queueSize=-1, fallback=nogds',
    ]);
    await loader.close();
  });

  test('warns of what is no section, and ignores it', async () => {
    const path = write('fastsafetensors.json', { parallel: 3, base: ['x'], '3fs': null, debug: {} });
    process.env.FASTSAFETENSORS_CONFIG = path;
    const warnings: string[] = [];
    const logger: Logger = { debug() {}, info() {}, warn: (line) => warnings.push(line) };
    const loader = new AutoLoader({ files: 'a', logger });
    expect(loader.config).toEqual({ loader: 'base', parallel: {}, debug: {}, base: {}, '3fs': {} });
    expect(warnings.sort()).toEqual([
      `fastsafetensors: ${path}: "3fs" is ignored: expected an object, found null`,
      `fastsafetensors: ${path}: "base" is ignored: expected an object, found an array`,
      `fastsafetensors: ${path}: "parallel" is ignored: expected an object, found 3`,
    ]);
    await loader.close();
  });

  test.each([
    ['true', true],
    ['1', true],
    ['false', false],
    ['0', false],
    ['Off', false],
    ['no', false],
    ['', false],
  ])('FASTSAFETENSORS_DEBUG=%s', async (value, on) => {
    const spies = (['debug', 'info'] as const).map((level) => jest.spyOn(console, level).mockImplementation(() => {}));
    write('fastsafetensors.json', { speed: 9 });
    process.env.FASTSAFETENSORS_DEBUG = value;
    try {
      const path = join(folder, 'w.safetensors');
      await saveFile([{ name: 'w', dtype: 'U8', shape: [1], data: Uint8Array.of(1) }], path);
      const loader = new AutoLoader({ files: path });
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
      await loader.close();
      const [debug, info] = spies.map((spy) => spy.mock.calls.length);
      expect([debug! > 1, info]).toEqual([on, on ? 1 : 0]); // the field that is left out, and what the load says
    } finally {
      delete process.env.FASTSAFETENSORS_DEBUG;
      for (const spy of spies) spy.mockRestore();
    }
  });
});
