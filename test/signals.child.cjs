// Many loads at once on one signal of the user's: no listener too many, and none left behind. A warning would be on
// stderr.
const { getEventListeners } = require('node:events');
const {
  assert,
  fakeReader,
  fastsafeOpen,
  main,
  mockCopier,
  nothingHeld,
  own,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  writeModel,
} = require('./support/child-helpers.cjs');

const MANY = 60;
const file = writeModel('a', 4, 64);
/** Reads take 300 ms; of a built-in copier because the test says so to its emulator. */
const SLOW = own ?? { copier: 'slow' };
registerCopier('slow', fakeReader({ msPerIo: 300 }));
registerCopier('mock', mockCopier({ delayMs: 5 }));

const times = (call) => Promise.all(Array.from({ length: MANY }, (_, i) => call(i)));
const rejections = (call) =>
  times((i) =>
    call(i).then(
      () => 'done',
      (error) => error,
    ),
  );

async function noListeners(signal) {
  await nothingHeld();
  assert.equal(getEventListeners(signal, 'abort').length, 0);
}

main({
  async gets() {
    const { signal } = new AbortController();
    const opened = await fastsafeOpen(file, { ...own, signal });
    for (const tensor of await times((i) => opened.getTensor(`a.${i % 4}`))) tensor.dispose();
    await opened.close();
    await noListeners(signal);
  },

  async loaders() {
    const { signal } = new AbortController();
    await times(async () => {
      const loader = new ParallelLoader({ files: file, ...own, signal });
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
      await loader.close();
    });
    await noListeners(signal);
  },

  async copies() {
    const { signal } = new AbortController();
    const loader = new SafeTensorsFileLoader(own);
    await loader.addFilenames(file);
    await times(async () => (await loader.copyFilesToDevice({ signal })).close());
    await loader.close();
    await noListeners(signal);
  },

  // A copier of the user's own listens once a request.
  async requests() {
    const files = Array.from({ length: MANY }, (_, i) => writeModel(`file${i}`, 1, 16));
    const loader = new ParallelLoader({ files, copier: 'mock', maxBatchBytes: 2 ** 30 });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
    await nothingHeld();
  },

  async aborted() {
    const controller = new AbortController();
    const opened = await fastsafeOpen(file, { ...SLOW, signal: controller.signal });
    const found = rejections((i) => opened.getTensor(`a.${i % 4}`));
    const reason = new Error('enough');
    setTimeout(() => controller.abort(reason), 20);
    assert.ok((await found).every((error) => error === reason));
    await opened.close().catch(() => {});
    await noListeners(controller.signal);
  },

  async closed() {
    const { signal } = new AbortController();
    const opened = await fastsafeOpen(file, { ...SLOW, signal });
    const found = rejections((i) => opened.getTensor(`a.${i % 4}`));
    setTimeout(() => void opened.close(), 20);
    assert.ok((await found).every((error) => error.code === 'CLOSED'));
    await opened.close();
    await noListeners(signal);
  },
});
