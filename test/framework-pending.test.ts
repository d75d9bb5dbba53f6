import { rm } from 'node:fs/promises';
import {
  type DeviceTensor,
  type Framework,
  fastsafeOpen,
  ParallelLoader,
  SafeTensorsFileLoader,
} from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { newFolder, someEntries, writeModel } from './support/model-files.js';

// A framework that takes its time over a tensor: nobody who has given up waits for it, and what it makes after all is
// disposed.

interface Made {
  tensor: DeviceTensor;
  disposed: boolean;
  dispose(): void;
}

/** Makes nothing until it is let. */
class Slow implements Framework<Made> {
  readonly name = 'slow';
  readonly given: DeviceTensor[] = [];
  readonly made: Made[] = [];
  #begun = (): void => {};
  #end = (_?: Error): void => {};
  readonly begun = new Promise<void>((resolve) => {
    this.#begun = resolve;
  });

  adopt(tensor: DeviceTensor): Promise<Made> {
    this.given.push(tensor);
    this.#begun();
    return new Promise((resolve, reject) => {
      this.#end = (error) => {
        if (error) return reject(error);
        const made: Made = {
          tensor,
          disposed: false,
          dispose() {
            this.disposed = true;
            if (!tensor.borrowed) tensor.dispose();
          },
        };
        this.made.push(made);
        resolve(made);
      };
    });
  }

  end(error?: Error): void {
    this.#end(error);
  }
}

let folder: string;
let files: string;
beforeEach(async () => {
  folder = await newFolder();
  files = await writeModel(folder, someEntries());
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});

interface Begun {
  pending: Promise<unknown>;
  close(): Promise<void>;
}
type Begin = (framework: Slow, signal: AbortSignal) => Promise<Begun>;

function iterate(options: object): Begin {
  return async (framework, signal) => {
    const loader = new ParallelLoader<Made>({ files, framework, signal, ...options });
    return { pending: loader.iterateWeights().next(), close: () => loader.close() };
  };
}

const BEGIN: Record<string, Begin> = {
  'in order': iterate({}),
  'as ready': iterate({ order: 'ready' }),
  borrowed: iterate({ borrow: true }),
  'fastsafeOpen, getTensor': async (framework, signal) => {
    const opened = await fastsafeOpen<Made>(files, { framework, signal });
    return { pending: opened.getTensor('weight'), close: () => opened.close() };
  },
  'fastsafeOpen, getSlice': async (framework, signal) => {
    const opened = await fastsafeOpen<Made>(files, { framework, signal });
    return { pending: opened.getSlice('weight', { stop: 2 }), close: () => opened.close() };
  },
};
const BUFFERS: Begin = async (framework) => {
  const loader = new SafeTensorsFileLoader<Made>({ framework });
  await loader.addFilenames(files);
  const buffers = await loader.copyFilesToDevice();
  await loader.close();
  return { pending: buffers.getTensor('weight'), close: () => buffers.close() };
};

async function expectGivenUp(
  { pending, close }: Begun,
  framework: Slow,
  reason: unknown,
  giveUp: () => unknown,
  error?: Error,
): Promise<void> {
  const rejected = pending.then(
    () => undefined,
    (thrown) => thrown,
  );
  await framework.begun;
  giveUp();
  const found = await rejected; // before the framework has done anything
  if (typeof reason === 'string') expect(found).toMatchObject({ code: reason });
  else expect(found).toBe(reason);
  await close();
  expect(framework.given.map(({ disposed }) => disposed)).toEqual([false]); // the adapter may be reading it
  framework.end(error);
  for (let i = 0; i < 5; ++i) await null;
  expect(framework.made.map(({ disposed }) => disposed)).toEqual(error ? [] : [true]);
  expect(framework.given.map(({ disposed }) => disposed)).toEqual([true]);
}

describe.each(Object.entries(BEGIN))('%s', (_, begin) => {
  test('an abort rejects at once', async () => {
    const framework = new Slow();
    const controller = new AbortController();
    const reason = new Error('enough');
    const begun = await begin(framework, controller.signal);
    await expectGivenUp(begun, framework, reason, () => controller.abort(reason));
  });

  test('close() rejects at once, also when the framework refuses in the end', async () => {
    for (const error of [undefined, new Error('refused')]) {
      const framework = new Slow();
      const begun = await begin(framework, new AbortController().signal);
      let closed: Promise<void> | undefined;
      await expectGivenUp(begun, framework, 'CLOSED', () => (closed = begun.close()), error);
      await closed;
    }
  });
});

test('a buffer that is closed', async () => {
  for (const error of [undefined, new Error('refused')]) {
    const framework = new Slow();
    const begun = await BUFFERS(framework, new AbortController().signal);
    await expectGivenUp(begun, framework, 'CLOSED', begun.close, error);
  }
});

test('what a framework made in time is not disposed by a close() that follows', async () => {
  for (const begin of [...Object.values(BEGIN), BUFFERS]) {
    const framework = new Slow();
    const { pending, close } = await begin(framework, new AbortController().signal);
    await framework.begun;
    framework.end();
    await pending;
    await close();
    expect(framework.made.map(({ disposed }) => disposed)).toEqual([false]);
    framework.made[0]!.dispose();
    framework.given[0]!.dispose();
  }
});
