// Ends the process in every way while loads are in flight.
const {
  assert,
  endAt,
  fakeReader,
  main,
  MOMENTS,
  mockCopier,
  moment,
  nothingHeld,
  own,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  setImmediate,
  setTimeout,
  useFakeDevices,
  writeModel,
} = require('./support/child-helpers.cjs');

registerCopier('slow', fakeReader({ msPerIo: 2, chunk: 4096, inFlight: 4 }));
registerCopier('hanging', fakeReader({ stallAt: 3, chunk: 4096 }));
registerCopier('mock', mockCopier({ delayMs: 2 }));
useFakeDevices({ copyDelayUs: 500 });
const files = ['a', 'b'].map((name) => writeModel(name, 30, 512));

const HOW = {
  direct: { copier: 'slow' },
  device: { copier: 'slow', device: 'cuda:0' },
  threads: { staging: 'always', maxThreads: 2, maxBytesPerSecond: 1e6 },
  mock: { copier: 'mock' },
  own,
  hanging: { copier: 'hanging', device: 'cuda:1', stallTimeoutMs: 2000 },
};

async function load(how, order = 'file') {
  const loader = new ParallelLoader({ files, order, ...HOW[how] });
  const kept = [];
  for await (const [, tensor] of loader.iterateWeights()) kept.push(tensor);
  await loader.close();
  return kept;
}

/** One load after the other, by both loaders; every third one is left open. `loaded` is called after each. */
async function loadForEver(how, loaded) {
  for (let n = 0; ; ++n) {
    let loader;
    if (n % 2 === 0) {
      loader = new ParallelLoader({ files, maxBatchBytes: 32 << 10, ...HOW[how] });
      for await (const [, tensor] of loader.iterateWeights()) if (n % 4 === 0) tensor.dispose();
    } else {
      loader = new SafeTensorsFileLoader(HOW[how]);
      await loader.addFilenames(files);
      const buffers = await loader.copyFilesToDevice();
      await buffers.getTensor('a.3');
      if (n % 4 === 1) await buffers.close();
    }
    if (n % 3 !== 2) await loader.close();
    loaded();
  }
}

/** What the process does with a signal. */
const ON_SIGNAL = {
  closes: (loader) => loader.close(),
  exits: () => {
    console.log('ok');
    process.exit(7);
  },
};

main({
  endAt: (ending, after, us) =>
    endAt(ending, after, us, (loaded) => {
      for (let i = 0; i < 4; ++i) loadForEver('own', loaded);
    }),

  /** A load that begins when nothing else is to be done; then the process ends by itself, or at once. */
  async beforeExit(how, then) {
    process.once('beforeExit', () => {
      const loading = load(how);
      if (then === 'exits') setTimeout(5).then(() => process.exit(7));
      else loading.then(({ length }) => console.log(length));
    });
  },

  /** A signal in the middle of a load: its handler closes or exits, or there is none. */
  async signal(name, how, does, us) {
    const loader = new ParallelLoader({ files, ...HOW[how] });
    const doing = ON_SIGNAL[does];
    if (doing) process.once(name, () => doing(loader));
    const loading = (async () => {
      for (;;) for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    })();
    const ended = loading.catch((error) => assert.equal(error.code, 'CLOSED'));
    const end = performance.now() + Number(us) / 1000;
    do await setImmediate();
    while (performance.now() < end);
    process.kill(process.pid, name);
    await ended;
    await nothingHeld();
  },

  async processExit(how, n) {
    load(how);
    load(how, 'ready');
    SafeTensorsMetadata.fromFile(files[0]);
    await moment(Number(n));
    console.log('ok');
    process.exit(0);
  },

  async uncaught(how, n) {
    if (how !== 'nothing') load(how);
    await moment(Number(n));
    throw process.nextTick(() => {
      throw new Error('uncaught on purpose');
    });
  },

  async rejected(how, n) {
    load(how);
    await moment(Number(n));
    Promise.reject(new Error('rejected on purpose'));
    await setTimeout(60_000);
  },

  // Nobody closes the loader: the process ends by itself when the load has.
  async naturalEnd(how) {
    const tensors = await load(how);
    assert.equal(tensors.length, 60);
    const open = new SafeTensorsFileLoader(HOW[how]);
    await open.addFilenames(files);
    const data = tensors[3].device.type === 'cpu' ? tensors[3].data : null;
    globalThis.kept = [open, await open.copyFilesToDevice(), tensors, data];
  },

  // A generator that was never asked for anything, one that was left in the middle, a copy that nobody awaits: nothing
  // keeps the process alive for ever.
  async abandoned(how) {
    const loader = new ParallelLoader({ files, queueSize: -1, maxBatchBytes: 4096, ...HOW[how] });
    loader.iterateWeights();
    const iterator = loader.iterateWeights();
    await iterator.next();
    const single = new SafeTensorsFileLoader(HOW[how]);
    await single.addFilenames(files);
    // One that hangs ends as STALLED, by its limit.
    single.copyFilesToDevice().catch((error) => assert.equal(error.code, 'STALLED'));
  },

  // What is awaited keeps the process alive, although nothing else does.
  async awaited(how) {
    assert.equal((await load(how)).length, 60);
  },

  // The process is told to end by a signal, at every moment, many times: in one process of workers this would not show.
  async loadAndClose(how) {
    for (let n = 0; n < MOMENTS; ++n) {
      const loader = new ParallelLoader({ files, ...HOW[how] });
      const iterator = loader.iterateWeights();
      iterator.next().catch(() => {});
      await moment(n);
      await loader.close();
    }
    await nothingHeld();
  },
});
