import { mkdir, rm } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import {
  extractMountPoint,
  fastsafeOpen,
  loadConfig,
  ParallelLoader,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  saveFile,
  ThreeFSLoader,
} from 'fastsafetensors-node';
import { pathOf } from '../src/base/checks.js';
import { readModelJson } from '../src/models/tfjs/model-json.js';
import { runCli } from './support/cli.js';
import { newFolder, someEntries, writeModel } from './support/model-files.js';
import { expectSame, LOADERS } from './support/read-back.js';

// A path may be given as a file: URL or begin with the home folder; what is no path says what to do instead.

const ENTRIES = someEntries();
let folder: string;
let path: string;
const home = process.env.HOME;
beforeEach(async () => {
  folder = join(await newFolder(), 'a folder#1');
  await mkdir(folder);
  path = await writeModel(folder, ENTRIES);
});
afterEach(async () => {
  process.env.HOME = home;
  await rm(join(folder, '..'), { recursive: true });
});

test('a file: URL, as object and as text, is a path to every loader', async () => {
  for (const given of [
    pathToFileURL(path),
    pathToFileURL(path).href,
    pathToFileURL(folder),
    pathToFileURL(folder).href,
  ])
    for (const load of Object.values(LOADERS)) expectSame(await load([given as string], {}), ENTRIES);
  const url = pathToFileURL(path);
  const opened = await fastsafeOpen(url);
  expect([...opened.metadata().keys()]).toEqual([path]);
  await opened.close();
  const loader = new SafeTensorsFileLoader();
  for (const files of [url, [url], { 0: url }, { 0: [url] }]) {
    await loader.addFilenames(files);
    expect(loader.keys()).toHaveLength(ENTRIES.length);
    loader.reset();
  }
  await loader.close();
});

test('~ is the home folder', async () => {
  process.env.HOME = folder;
  for (const given of ['~', '~/', '~/model.safetensors'])
    for (const load of Object.values(LOADERS)) expectSame(await load([given], {}), ENTRIES);
  expect((await SafeTensorsMetadata.fromFile('~/model.safetensors')).path).toBe(path);
  await expect(SafeTensorsMetadata.fromFile('~other/model.safetensors')).rejects.toMatchObject({ code: 'IO_ERROR' });
});

test('so they are to what reads and writes other files', async () => {
  process.env.HOME = folder;
  const tensor = { name: 'w', dtype: 'U8' as const, shape: [1], data: Uint8Array.of(7) };
  for (const given of ['~/out.safetensors', pathToFileURL(join(folder, 'out.safetensors'))]) {
    await saveFile([tensor], given);
    expect((await SafeTensorsMetadata.fromFile(given)).keys()).toEqual(['w']);
    await rm(join(folder, 'out.safetensors'));
  }
  for (const given of ['~/none.json', pathToFileURL(join(folder, 'none.json'))]) {
    const missing = { code: 'IO_ERROR', path: join(folder, 'none.json') };
    expect(() => loadConfig({ path: given })).toThrow(expect.objectContaining(missing));
    await expect(readModelJson(given)).rejects.toMatchObject(missing);
  }
  // As tfjs-node takes it: relative.
  const model = relative(process.cwd(), join(folder, 'none.json'));
  await expect(readModelJson(`file://${model}`)).rejects.toMatchObject({ code: 'IO_ERROR', path: model });
  expect(() => extractMountPoint('~')).toThrow(expect.objectContaining({ code: 'NOT_3FS' }));
  for (const command of ['inspect', 'verify', 'load'])
    expect(await runCli(command, '~/model.safetensors')).toMatchObject({ exitCode: 0, stderr: '' });
});

test('so is the mount point of 3FS', async () => {
  process.env.HOME = folder;
  for (const mountPoint of ['~', pathToFileURL(folder), pathToFileURL(folder).href]) {
    const refused = { code: 'NOT_3FS', path: folder };
    const files = { files: path, copier: '3fs', mountPoint } as const;
    await expect(new ParallelLoader(files).iterateWeights().next()).rejects.toMatchObject(refused);
    const single = new ThreeFSLoader({ mountPoint });
    await single.addFilenames(path);
    await expect(single.copyFilesToDevice()).rejects.toMatchObject(refused);
  }
  expect(() => new ThreeFSLoader({ mountPoint: 'https://example.com/3fs' })).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('mountPoint') }),
  );
});

test.each([
  ['https://huggingface.co/org/name/resolve/main/model.safetensors', '`hf download org/name`'],
  ['hf://org/name', '`hf download org/name`'],
  ['https:/huggingface.co/org/name', 'hf download'], // through join() or normalize()
  ['https://example.com/model.safetensors', 'download it first'],
  ['s3://bucket/model', 'download it first'],
  ['file://elsewhere/model', 'file: URL of this machine'],
  ['file:///a%2fb', 'file: URL of this machine'],
  ['file:///a%00b', 'expected a path'],
])('%s is INVALID_ARGUMENT and says what to do', async (url, advice) => {
  const refused = { code: 'INVALID_ARGUMENT', message: expect.stringContaining(advice) };
  await expect(fastsafeOpen(url)).rejects.toMatchObject(refused);
  await expect(fastsafeOpen([url, path])).rejects.toMatchObject(refused);
  await expect(new ParallelLoader({ files: url }).iterateWeights().next()).rejects.toMatchObject(refused);
  if (url !== 'file://elsewhere/model') await expect(readModelJson(url)).rejects.toMatchObject(refused);
  expect((await runCli('inspect', url)).stderr).toContain(advice);
});

test('an URL object of another protocol is INVALID_ARGUMENT', async () => {
  const refused = { code: 'INVALID_ARGUMENT', message: expect.stringContaining('download it first') };
  for (const url of ['https://example.com/x', 'hf:org/name', 'data:,x', 'c:/models/x'])
    await expect(fastsafeOpen(new URL(url))).rejects.toMatchObject(refused);
  for (const value of [{}, { href: 7 }, null, 7, undefined, Buffer.from('x')])
    expect(() => pathOf(value, 'x')).toThrow(TypeError);
});

test('a pattern is told not to be expanded, unless a file is called so', async () => {
  for (const name of ['*.safetensors', 'model-0000?-of-00002.safetensors', '{a,b}.safetensors'])
    await expect(fastsafeOpen(join(folder, name))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/patterns are not expanded; pass the folder, or a list of files/),
    });
  expect((await runCli('load', join(folder, '*.safetensors'))).stderr).toContain('not expanded');
  const list = [path, join(folder, '*.safetensors')];
  const refused = { code: 'INVALID_ARGUMENT', message: expect.stringContaining('patterns are not expanded') };
  await expect(fastsafeOpen(list)).rejects.toMatchObject(refused);
  await expect(new ParallelLoader({ files: list }).iterateWeights().next()).rejects.toMatchObject(refused);
  await expect(new SafeTensorsFileLoader().addFilenames({ 0: list })).rejects.toMatchObject(refused);
  const odd = await writeModel(folder, ENTRIES, '[1]*.safetensors');
  expectSame(await LOADERS.fastsafeOpen!([odd], {}), ENTRIES);
});

describe('the name of a model of the hub that is no path', () => {
  const cache = process.env.HF_HUB_CACHE;
  afterEach(() => {
    if (cache === undefined) delete process.env.HF_HUB_CACHE;
    else process.env.HF_HUB_CACHE = cache;
  });

  test('says how to download it', async () => {
    process.env.HF_HUB_CACHE = join(folder, 'nowhere');
    const refused = { code: 'IO_ERROR', path: 'org/name', message: expect.stringContaining('`hf download org/name`') };
    await expect(fastsafeOpen('org/name')).rejects.toMatchObject(refused);
    await expect(fastsafeOpen([path, 'org/name'])).rejects.toMatchObject(refused);
    expect((await runCli('verify', 'org/name')).stdout).toContain('hf download org/name');
  });

  test('or where in the cache it is', async () => {
    process.env.HF_HUB_CACHE = folder;
    const there = join(folder, 'models--org--name');
    await mkdir(there);
    const refused = { code: 'IO_ERROR', message: expect.stringContaining(`pass its folder in the cache, ${there}`) };
    await expect(fastsafeOpen('org/name')).rejects.toMatchObject(refused);
  });
});
