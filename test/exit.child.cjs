// Ends the process in every way while loads are in flight.
const { mkdirSync } = require('node:fs');
const { join } = require('node:path');
const {
  assert,
  fakeReader,
  folder,
  main,
  MOMENTS,
  mockCopier,
  moment,
  nothingHeld,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  setTimeout,
  useFakeDevices,
  writeModel,
} = require('./support/child-helpers.cjs');

registerCopier('slow', fakeReader({ msPerIo: 2, chunk: 4096, inFlight: 4 }));
registerCopier('hanging', fakeReader({ stallAt: 3, chunk: 4096 }));
registerCopier('mock', mockCopier({ delayMs: 2 }));
useFakeDevices({ copyDelayUs: 500 });
if (process.env.FASTSAFETENSORS_3FS_LIB) mkdirSync(join(folder, '3fs-virt', 'iovs'), { recursive: true });
const files = ['a', 'b'].map((name) => writeModel(name, 30, 512));

const HOW = {
  direct: { copier: 'slow' },
  device: { copier: 'slow', device: 'cuda:0' },
  threads: { staging: 'always', maxThreads: 2, maxBytesPerSecond: 1e6 },
  mock: { copier: 'mock' },
  '3fs': { copier: '3fs', device: process.env.TEST_DEVICE ?? 'cpu' },
  hanging: { copier: 'hanging', device: 'cuda:1', stallTimeoutMs: 2000 },
};

async function load(how, order = 'file') {
  const loader = new ParallelLoader({ files, order, ...HOW[how] });
  const kept = [];
  for await (const [, tensor] of loader.iterateWeights()) kept.push(tensor);
  await loader.close();
  return kept;
}

main({
  async processExit(how, n) {
    load(how);
    load(how, 'ready');
    SafeTensorsMetadata.fromFile(files[0]);
    await moment(Number(n));
    console.log('ok');
    process.exit(0);
  },

  async uncaught(how, n) {
    load(how);
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
