import { rm } from 'node:fs/promises';
import {
  AutoLoader,
  type DeviceTensor,
  type Framework,
  loadFile,
  ParallelLoader,
  ParallelThreeFSLoader,
  SafeTensorsFileLoader,
  ThreeFSLoader,
} from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';
import { refused } from './support/refused.js';

// The shortest ways to all tensors of a model: loadFile(), and loaders as iterables.

const ENTRIES = [entry('b', 'F32', [2, 3]), entry('__proto__', 'U8', [4]), entry('constructor', 'I64', [0])];
const NAMES = ENTRIES.map(({ name }) => name);
let folder: string;
let path: string;
beforeAll(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(expectNothingHeld);

async function expectWhole(tensors: Iterable<readonly [string, DeviceTensor]>): Promise<void> {
  const names: string[] = [];
  for (const [name, tensor] of tensors) {
    const { dtype, shape, bytes } = ENTRIES[names.push(name) - 1]!;
    expect(tensor).toMatchObject({ name, dtype, shape });
    expect(Buffer.compare(await tensor.toHost(), bytes)).toBe(0);
    tensor.dispose();
  }
  expect(names).toEqual(NAMES);
}

/** Makes objects that count; refuses the tensor of one name. */
class Counting implements Framework<{ dispose(): void }> {
  readonly name = 'counting';
  alive = 0;
  readonly #refuses: string;

  constructor(refuses = '') {
    this.#refuses = refuses;
  }

  adopt(tensor: DeviceTensor) {
    if (tensor.name === this.#refuses) throw new Error(`not ${tensor.name}`);
    ++this.alive;
    return {
      dispose: () => {
        --this.alive;
        tensor.dispose();
      },
    };
  }
}

describe('loadFile', () => {
  test('gives every tensor by its name, whatever that is', async () => {
    const tensors = await loadFile(path);
    expect(Object.keys(tensors)).toEqual(NAMES);
    expect('toString' in tensors).toBe(false);
    await expectWhole(Object.entries(tensors));
  });

  test('takes the options of loaders and what other loaders take as files', async () => {
    const tensors = await loadFile([new URL(`file://${path}`)], { dtype: 'F16', filter: (name) => name === 'b' });
    expect(Object.values(tensors).map(({ name, dtype }) => [name, dtype])).toEqual([['b', 'F16']]);
    tensors.b!.dispose();
    const framework = new Counting();
    const adopted = await loadFile(path, { framework });
    expect(framework.alive).toBe(3);
    for (const tensor of Object.values(adopted)) tensor.dispose();
  });

  test('leaves nothing after an error', async () => {
    const framework = new Counting('constructor');
    await expect(loadFile(path, { framework })).rejects.toThrow('not constructor');
    expect(framework.alive).toBe(0);
    await expect(loadFile('/nowhere/at/all')).rejects.toMatchObject({ code: 'IO_ERROR' });
  });

  test('refuses what belongs elsewhere, by a rejection', async () => {
    expect((await refused(() => loadFile(path, { queueSize: 1 } as never))).message).toContain('ParallelLoader');
    expect((await refused(() => loadFile(path, path as never))).message).toContain('options');
    expect((await refused(() => loadFile(undefined as never))).message).toContain('files');
  });
});

describe('for await over a loader', () => {
  const fileLoader = async (): Promise<SafeTensorsFileLoader> => {
    const loader = new SafeTensorsFileLoader();
    await loader.addFilenames(path);
    return loader;
  };
  const LOADERS = {
    ParallelLoader: async () => new ParallelLoader({ files: path }),
    AutoLoader: async () => new AutoLoader({ files: path }),
    SafeTensorsFileLoader: fileLoader,
  };

  test.each(Object.entries(LOADERS))('%s gives all tensors, and is closed after the loop', async (_, make) => {
    const loader = await make();
    const tensors: (readonly [string, DeviceTensor])[] = [];
    for await (const pair of loader) tensors.push(pair);
    await expectWhole(tensors);
    expect(loader.report).toMatchObject({ tensors: 3, files: 1 });
    await expect((async () => void (await loader[Symbol.asyncIterator]().next()))()).rejects.toMatchObject({
      code: 'CLOSED',
    });
    await loader.close(); // nothing more
  });

  test.each(Object.entries(LOADERS))('%s is closed by break and by an error', async (_, make) => {
    const left = await make();
    for await (const [, tensor] of left) {
      tensor.dispose();
      break;
    }
    await expect(left[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: 'CLOSED' });
    const failing = await make();
    const failure = (async () => {
      for await (const [name, tensor] of failing) {
        tensor.dispose();
        throw new Error(`no ${name}`);
      }
    })();
    await expect(failure).rejects.toThrow('no b');
    await expect(failing[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: 'CLOSED' });
  });

  test('those over 3FS are iterable, too', () => {
    for (const loader of [ParallelThreeFSLoader, ThreeFSLoader]) {
      expect(loader.prototype[Symbol.asyncIterator]).toBeInstanceOf(Function);
    }
  });

  test('a loader without files says so', async () => {
    await expect(new SafeTensorsFileLoader()[Symbol.asyncIterator]().next()).rejects.toMatchObject({
      code: 'NO_FILES',
    });
  });

  test('a buffer gives its tensors, and stays open', async () => {
    await using loader = await fileLoader();
    const buffer = await loader.copyFilesToDevice();
    for (let round = 0; round < 2; ++round) {
      const tensors: (readonly [string, DeviceTensor])[] = [];
      for await (const pair of buffer) tensors.push(pair);
      await expectWhole(tensors);
    }
    await buffer.close();
    await expect(buffer[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: 'CLOSED' });
  });
});
