// Ends loads at every moment, in every way.
const {
  assert,
  fakeReader,
  fastsafeOpen,
  main,
  moment,
  MOMENTS,
  nothingHeld,
  nativeMetrics,
  own,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  mockCopier,
  setTimeout,
  useFakeDevices,
  writeModel,
  filledWith,
} = require('./support/child-helpers.cjs');

registerCopier('slow', fakeReader({ msPerIo: 1, chunk: 4096, inFlight: 2, reorder: true }));
/** In a function of its own: a frame that lives on may keep the last array from being collected. */
async function keepThrough(options) {
  const kept = [];
  const loader = new ParallelLoader({ files, maxBatchBytes: 8192, ...options });
  for await (const [, tensor] of loader.iterateWeights()) kept.push(tensor);
  await loader.close();
  const single = new SafeTensorsFileLoader(options);
  await single.addFilenames(files);
  const buffers = await single.copyFilesToDevice();
  for (const key of buffers.keys()) kept.push(await buffers.getTensor(key));
  await buffers.close();
  await single.close();
  const arrays = [];
  for (const tensor of kept) {
    const want = Number(tensor.name.split('.')[1]);
    assert.ok(filledWith(await tensor.toHost(), want));
    const copy = await tensor.clone();
    if (tensor.device.type === 'cpu') arrays.push([want, tensor.data]);
    tensor.dispose();
    tensor.dispose();
    assert.equal(tensor.disposed, true);
    assert.ok(filledWith(await copy.toHost(), want));
    copy.dispose();
    for (const use of [() => tensor.data, () => tensor.pointer]) assert.throws(use, { code: 'CLOSED' });
    await assert.rejects(tensor.toHost(), { code: 'CLOSED' });
    await assert.rejects(tensor.clone(), { code: 'CLOSED' });
  }
  kept.length = 0;
  globalThis.gc?.();
  for (const [want, array] of arrays) {
    assert.ok(filledWith(array, want));
  }
  arrays.length = 0;
}

registerCopier('hanging', fakeReader({ msPerIo: 400 }));
registerCopier('mock', mockCopier({ delayMs: 1 }));
useFakeDevices({ copyDelayUs: 200 });
const files = ['a', 'b'].map((name) => writeModel(name, 12, 512));

const HOW = own
  ? [own]
  : [
      { copier: 'slow' },
      { copier: 'slow', device: 'cuda:0' },
      { copier: 'nogds', staging: 'always' },
      { copier: 'mock' },
    ];
/** Reads take 400 ms; those of a built-in copier 800, because the test says so to its emulator. */
const HANGING = own ?? { copier: 'hanging' };

// Each loads everything and resolves, or rejects.
async function iterate(options, use = () => {}) {
  const loader = new ParallelLoader({ files, maxBatchBytes: 8192, ...options });
  const done = (async () => {
    for await (const [, tensor] of loader.iterateWeights()) {
      use(tensor);
      tensor.dispose();
    }
  })();
  return { loader, done };
}
async function copyFiles(options) {
  const loader = new SafeTensorsFileLoader(options);
  const done = (async () => {
    await loader.addFilenames(files);
    const buffers = await loader.copyFilesToDevice();
    (await buffers.getTensor('a.3')).dispose(); // the others are never asked for
    await buffers.close();
  })();
  return { loader, done };
}
async function readOne(options) {
  const loader = { closing: false, close: async () => (await opening).close() };
  const opening = fastsafeOpen(files, options);
  const done = (async () => {
    const opened = await opening;
    const settled = await Promise.allSettled(['a.1', 'b.1'].map((name) => opened.getTensor(name)));
    for (const { value } of settled) value?.dispose();
    const failed = settled.find(({ status }) => status === 'rejected'); // perhaps when the other was there
    if (failed) throw failed.reason;
    (await opened.getSlice('b.7', { step: 5 })).dispose();
  })();
  done.catch(() => {});
  return { loader, done };
}
const LOADS = [iterate, (options) => iterate({ ...options, order: 'ready', queueSize: 2 }), copyFiles, readOne];

async function everywhere(each) {
  for (const options of HOW) {
    for (const load of LOADS) for (let n = 0; n < MOMENTS; ++n) await each(load, options, n);
  }
  await nothingHeld();
}

const codeOf = (done) =>
  done.then(
    () => 'done',
    (error) => error.code ?? error,
  );

main({
  close: () =>
    everywhere(async (load, options, n) => {
      const { loader, done } = await load(options);
      const code = codeOf(done);
      await moment(n);
      await loader.close();
      assert.match(await code, /^(done|CLOSED)$/);
    }),

  closeTwice: () =>
    everywhere(async (load, options, n) => {
      const { loader, done } = await load(options);
      const code = codeOf(done);
      const first = moment(n).then(() => loader.close());
      const second = moment(n + 1).then(() => loader.close());
      await Promise.all([first, second, loader.close(), loader.close()]);
      assert.match(await code, /^(done|CLOSED)$/);
      await loader.close();
    }),

  async closeBeforeAnything() {
    for (const Loader of [ParallelLoader, SafeTensorsFileLoader]) {
      const loader = new Loader(Loader === ParallelLoader ? { files } : {});
      await Promise.all([loader.close(), loader.close()]);
      await loader[Symbol.asyncDispose]();
    }
    await nothingHeld();
  },

  abort: () =>
    everywhere(async (load, options, n) => {
      const controller = new AbortController();
      const { loader, done } = await load({ ...options, signal: controller.signal });
      const code = codeOf(done);
      await moment(n);
      const reason = new Error('enough');
      controller.abort(reason);
      const result = await code;
      assert.ok(result === 'done' || result === reason, String(result));
      await loader.close().catch((error) => assert.equal(error, reason));
    }),

  // The signal of one copy, not of the loader: the loader stays usable, and holds nothing of what was given up.
  async abortOneCopy() {
    for (const options of HOW) {
      const loader = new SafeTensorsFileLoader(options);
      await loader.addFilenames(files);
      for (let n = 0; n < MOMENTS; ++n) {
        const controller = new AbortController();
        const copying = loader.copyFilesToDevice({ signal: controller.signal });
        const code = codeOf(copying.then((buffers) => buffers.close()));
        await moment(n);
        controller.abort();
        const result = await code;
        assert.ok(result === 'done' || result === controller.signal.reason.code, String(result));
      }
      const { deviceBytes, hostBytes } = nativeMetrics();
      const again = await loader.copyFilesToDevice();
      assert.equal((await again.getTensor('b.2')).byteLength, 2048);
      await again.close();
      await loader.close();
      assert.ok(deviceBytes + hostBytes < 3 * 2 * 12 * 2048, `${deviceBytes + hostBytes} bytes are still held`);
    }
    globalThis.gc?.();
    await nothingHeld();
  },

  async abortIsAtOnce() {
    const first = await copyFiles(own ?? {}); // a real GPU takes longer to open than these loads may
    await first.done;
    await first.loader.close();
    const inFlight = () => nativeMetrics().inFlight > 0;
    for (const load of LOADS) {
      for (const aborts of ['before', 'while reads are in flight']) {
        const controller = new AbortController();
        const { signal } = controller;
        if (aborts === 'before') controller.abort();
        const { loader, done } = await load({ ...HANGING, signal });
        done.catch(() => {});
        if (aborts !== 'before') {
          while (!inFlight()) await setTimeout(1);
          await setTimeout(100); // files that are being opened count, too
        }
        controller.abort();
        const error = await done.then(
          () => assert.fail('it was loaded'),
          (thrown) => thrown,
        );
        assert.equal(error, signal.reason);
        assert.equal(error.name, 'AbortError');
        // Reads that take that long are still in flight: nobody has waited for them.
        assert.equal(inFlight(), aborts !== 'before');
        await loader.close().catch(() => {});
        await nothingHeld();
      }
    }
  },

  async timeout() {
    const first = await copyFiles(own ?? {}); // opens the device
    await first.done;
    await first.loader.close();
    for (const load of LOADS) {
      // Headers count, too: on a busy machine no read may have begun. Reads take longer than the longest limit.
      let inFlight = 0;
      for (let timeoutMs = own ? 100 : 20; inFlight === 0; timeoutMs *= 2) {
        const code = load({ ...HANGING, timeoutMs }).then(async ({ loader, done }) => {
          const ended = await codeOf(done);
          inFlight = nativeMetrics().inFlight;
          await loader.close().catch(() => {}); // fastsafeOpen() may have had no time
          return ended;
        });
        assert.equal(await code, 'TIMEOUT');
      }
    }
    await nothingHeld();
  },

  // break, return() and an exception in the loop's body give back what was loaded ahead; the loader can be used again.
  async leave() {
    for (const options of HOW) {
      for (const order of ['file', 'ready']) {
        const loader = new ParallelLoader({ files, maxBatchBytes: 8192, order, ...options });
        for (let after = 0; after < 24; ++after) {
          let seen = 0;
          for await (const [, tensor] of loader.iterateWeights()) {
            tensor.dispose();
            if (seen++ === after) break;
          }
          const iterator = loader.iterateWeights();
          for (let i = 0; i < after; ++i) (await iterator.next()).value[1].dispose();
          await iterator.return();
          assert.deepEqual(await iterator.next(), { done: true, value: undefined });
          const thrown = (async () => {
            for await (const [, tensor] of loader.iterateWeights()) {
              tensor.dispose();
              throw new Error('mine');
            }
          })();
          await assert.rejects(thrown, { message: 'mine' });
        }
        assert.ok(nativeMetrics().hostBytes + nativeMetrics().deviceBytes < 8 * 8192);
        await loader.close();
      }
    }
    await nothingHeld();
  },

  async twoIterationsAtOnce() {
    for (const options of HOW) {
      const loader = new ParallelLoader({ files, maxBatchBytes: 8192, ...options });
      const readAll = async (slow) => {
        const names = [];
        for await (const [name, tensor] of loader.iterateWeights()) {
          const bytes = await tensor.toHost();
          assert.ok(filledWith(bytes, Number(name.split('.')[1])));
          if (slow) await setTimeout(1);
          names.push(name);
          tensor.dispose();
        }
        assert.equal(new Set(names).size, 24);
      };
      await Promise.all([readAll(false), readAll(true), readAll(false)]);
      await loader.close();
    }
    await nothingHeld();
  },

  // Tensors and typed arrays stay valid after everything that they came from is closed.
  async keepTensors() {
    for (const options of [...HOW, ...(own ? [] : [{ device: 'cpu' }])]) await keepThrough(options);
    await setTimeout(1);
    await nothingHeld();
  },

  // Without garbage collection: what close() and dispose() do not give back is never given back in time.
  async closedBufferGivesAllBack() {
    for (const options of HOW) {
      const loader = new SafeTensorsFileLoader(options);
      await loader.addFilenames(files);
      const untouched = await loader.copyFilesToDevice();
      await untouched.close();
      const other = await loader.copyFilesToDevice();
      await loader.close();
      (await other.getTensor('a.0')).dispose();
      await other.close();
      await nothingHeld();
    }
  },
});
