import {
  appendFileSync,
  copyFileSync,
  renameSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import {
  FastSafetensorsError,
  fastsafeOpen,
  type LoaderOptions,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { fakeReader, mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { encodeFile, entry, newFolder, writeModel } from './support/model-files.js';
import { LOADERS, userCopier } from './support/read-back.js';

// A file that is written to between its header and its last read is FILE_CHANGED (or ends early): never data of two
// versions, never zeros.

registerCopier('user', userCopier);
registerCopier('mock', mockCopier());
registerCopier('slow', fakeReader({ msPerIo: 40, chunk: 8192, inFlight: 1 }));

/** The package's own reader, so slow that files change in the middle. */
const SLOWED: LoaderOptions = { maxBytesPerSecond: 400_000, bounceBufferSize: 4096, maxThreads: 1 };

const ENTRIES = [entry('a', 'F32', [4096]), entry('b', 'U8', [20000]), entry('c', 'F16', [10000])];

const CHANGES: Record<string, (path: string) => void> = {
  shrinks: (path) => truncateSync(path, 30000),
  'shrinks to nothing': (path) => truncateSync(path, 0),
  grows: (path) => appendFileSync(path, 'more'),
  'is written over in place': (path) => {
    const others = ENTRIES.map(({ name, dtype, shape }) => entry(name, dtype, shape));
    writeFileSync(path, encodeFile(others), { flag: 'r+' });
  },
  'is touched': (path) => utimesSync(path, new Date(), new Date(Date.now() + 5000)),
};
const BETWEEN: typeof CHANGES = {
  ...CHANGES,
  'is replaced': (path) => {
    writeFileSync(`${path}.new`, encodeFile(ENTRIES));
    renameSync(`${path}.new`, path);
  },
};

const HOW: Record<string, LoaderOptions> = {
  'into place': {},
  'onto a device': { device: 'cuda:0' },
  'past the page cache': { odirect: true },
  'by a copier of the user': { copier: 'user' },
  'by the mock copier': { copier: 'mock' },
};

let folder: string;
let path: string;
beforeAll(() => useFakeDevices({ copyDelayUs: 0 }));
afterAll(() => useFakeDevices(null));
beforeEach(async () => {
  folder = await newFolder();
  path = await writeModel(folder, ENTRIES);
  await setTimeout(20); // times of files are as fine as the kernel's tick
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld({ collect: true });
});

async function expectChanged(loading: Promise<unknown>): Promise<void> {
  const error = await loading.then(
    () => 'it was loaded',
    (thrown) => thrown,
  );
  expect(error).toBeInstanceOf(FastSafetensorsError);
  expect(['FILE_CHANGED', 'UNEXPECTED_EOF']).toContain(error.code);
  expect(error.path).toBe(path);
}

describe.each(Object.entries(BETWEEN))('a file that %s between its header and its first read', (_, change) => {
  test.each(Object.entries(HOW))('is refused %s by every loader', async (_, options) => {
    for (const load of Object.values(LOADERS)) {
      path = await writeModel(folder, ENTRIES);
      await setTimeout(20); // times of files are as fine as the kernel's tick
      let changed = false;
      const filter = (): boolean => {
        if (!changed) change(path);
        changed = true;
        return true;
      };
      await expectChanged(load([path], { ...options, filter }));
    }
  });
});

describe.each<[string, (link: string, target: string) => void]>([
  ['is pointed to another file', (link, target) => pointTo(link, `${target}.copy`)],
  ['leads to a file that is replaced', (_, target) => BETWEEN['is replaced']!(target)],
  ['leads to a file that is written over', (_, target) => CHANGES['is written over in place']!(target)],
])('a link that %s between its header and its first read', (_, change) => {
  test.each(Object.entries(HOW))('is refused %s by every loader', async (_, options) => {
    const link = join(folder, 'link.safetensors');
    for (const load of Object.values(LOADERS)) {
      const target = await writeModel(folder, ENTRIES);
      copyFileSync(target, `${target}.copy`);
      pointTo(link, target);
      path = link;
      await setTimeout(20);
      let changed = false;
      const filter = (): boolean => {
        if (!changed) change(link, target);
        changed = true;
        return true;
      };
      await expectChanged(load([link], { ...options, filter }));
    }
  });
});

function pointTo(link: string, target: string): void {
  symlinkSync(target, `${link}.new`);
  renameSync(`${link}.new`, link);
}

test.each(['delete', 'folder'])(
  'a file that is gone (%s) between its header and its first read is IO_ERROR',
  async (how) => {
    for (const options of Object.values(HOW)) {
      path = await writeModel(folder, ENTRIES);
      const opened = await fastsafeOpen(path, options);
      renameSync(path, `${path}.${how}`);
      if (how === 'folder') require('node:fs').mkdirSync(path);
      const code = how === 'folder' && options.copier ? 'FILE_CHANGED' : 'IO_ERROR';
      await expect(opened.getTensor('a')).rejects.toMatchObject({ code, path });
      await opened.close();
      await rm(path, { recursive: true, force: true });
    }
  },
);

describe.each(Object.entries(CHANGES))('a file that %s while it is read', (_, change) => {
  test.each<[string, LoaderOptions]>([
    ['slow store', { copier: 'slow' }],
    ['slow store onto a device', { copier: 'slow', device: 'cuda:0' }],
    ['slowed reads', SLOWED],
    ['slowed reads onto a device', { ...SLOWED, device: 'cuda:0' }],
    ['slowed reads past the page cache', { ...SLOWED, odirect: true }],
  ])('ends ParallelLoader, %s', async (_, options) => {
    const loader = new ParallelLoader({ files: path, ...options });
    const iterate = async (): Promise<void> => {
      for await (const [, tensor] of loader.iterateWeights()) {
        if (tensor.name === 'a') change(path);
        tensor.dispose();
      }
    };
    await expectChanged(iterate());
    await loader.close();
  });

  test('ends SafeTensorsFileLoader, and what is loaded again is the new version', async () => {
    const loader = new SafeTensorsFileLoader({ copier: 'slow' });
    await loader.addFilenames(path);
    const loading = loader.copyFilesToDevice();
    const refused = expectChanged(loading);
    await setTimeout(60);
    change(path);
    await refused;
    await expectNothingHeldButOpen(loader);
    await writeModel(folder, ENTRIES);
    loader.reset(); // it had the headers of before
    await loader.addFilenames(path);
    const buffers = await loader.copyFilesToDevice();
    const tensor = await buffers.getTensor('b');
    expect(Buffer.compare(await tensor.toHost(), ENTRIES[1]!.bytes)).toBe(0);
    tensor.dispose();
    await buffers.close();
    await loader.close();
  });
});

test('a file that is replaced by another while it is read is read to its end in its old version', async () => {
  const loader = new ParallelLoader({ files: path, copier: 'slow' });
  const read = new Map<string, Uint8Array>();
  for await (const [name, tensor] of loader.iterateWeights()) {
    if (name === 'a') {
      writeFileSync(`${path}.new`, encodeFile(ENTRIES.map(({ name, dtype, shape }) => entry(name, dtype, shape))));
      renameSync(`${path}.new`, path);
    }
    read.set(name, await tensor.toHost());
    tensor.dispose();
  }
  for (const { name, bytes } of ENTRIES) expect(Buffer.compare(read.get(name)!, bytes)).toBe(0);
  await loader.close();
});

async function expectNothingHeldButOpen(loader: SafeTensorsFileLoader): Promise<void> {
  // The loader is open, so that its slots may stay: tensors and files may not.
  expect(loader.estimate().tensors).toBe(ENTRIES.length);
  await expectNothingHeld({ stagingBytes: loader.estimate().stagingBytes });
}
