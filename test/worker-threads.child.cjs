// Loads in worker threads that end in every way.
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const helpers = require('./support/child-helpers.cjs');
const {
  assert,
  fakeReader,
  main,
  moment,
  nothingHeld,
  nativeMetrics,
  own,
  ParallelLoader,
  registerCopier,
  setTimeout,
  SafeTensorsFileLoader,
  filledWith,
} = helpers;

registerCopier('slow', fakeReader({ msPerIo: 2, chunk: 4096, inFlight: 4 }));
registerCopier('stalled', fakeReader({ stallAt: 2, chunk: 4096 }));
const HOW = own ? [own] : [{ copier: 'slow' }, { copier: 'slow', device: 'cuda:0' }, { staging: 'always' }];

async function loadAll(files, options) {
  const loader = new ParallelLoader({ files, maxBatchBytes: 8192, ...options });
  const tensors = [];
  for await (const [name, tensor] of loader.iterateWeights()) {
    const bytes = await tensor.toHost();
    assert.ok(filledWith(bytes, Number(name.split('.')[1])));
    tensors.push(tensor);
  }
  return { loader, tensors };
}

if (!isMainThread) {
  const { files, options, how } = workerData;
  (async () => {
    if (how === 'load and close') {
      const { loader, tensors } = await loadAll(files, options);
      for (const tensor of tensors) tensor.dispose();
      await loader.close();
      parentPort.postMessage('loaded');
    } else if (how === 'end with everything open') {
      const { loader, tensors } = await loadAll(files, options);
      globalThis.kept = [loader, tensors, tensors.map((tensor) => (tensor.device.type === 'cpu' ? tensor.data : null))];
      parentPort.postMessage('loaded');
    } else if (how === 'exit in the middle') {
      loadAll(files, options);
      await moment(workerData.n);
      process.exit(0);
    } else if (how === 'throw in the middle') {
      loadAll(files, options);
      await moment(workerData.n);
      throw new Error('in a worker, on purpose');
    } else if (how === 'clone until terminated') {
      const { tensors } = await loadAll(files, options);
      parentPort.postMessage('started');
      for (;;) {
        for (let i = 0; i < 200; ++i) tensors[0].clone(); // nobody waits for them
        await setTimeout(1);
      }
    } else {
      parentPort.postMessage('started');
      for (;;) {
        const loader = new SafeTensorsFileLoader(options);
        await loader.addFilenames(files);
        await loader.copyFilesToDevice(); // never closed
      }
    }
  })();
} else {
  helpers.useFakeDevices({ copyDelayUs: 100 });
  const files = ['a', 'b'].map((name) => helpers.writeModel(name, 12, 512));
  const start = (data) =>
    new Worker(__filename, { workerData: { files, options: {}, ...data }, stderr: true, stdout: true });
  const ended = (worker) =>
    new Promise((resolve) => {
      const messages = [];
      let error;
      worker.on('message', (message) => messages.push(message));
      worker.on('error', (thrown) => {
        error = thrown;
      });
      worker.on('exit', (code) => resolve({ code, messages, error }));
    });

  main({
    async severalAtOnce() {
      for (const how of ['load and close', 'end with everything open']) {
        for (const options of HOW) {
          const workers = Array.from({ length: 4 }, () => ended(start({ how, options })));
          const mine = await loadAll(files, options);
          for (const tensor of mine.tensors) tensor.dispose();
          await mine.loader.close();
          for (const { code, messages, error } of await Promise.all(workers)) {
            assert.deepEqual({ code, messages, error }, { code: 0, messages: ['loaded'], error: undefined });
          }
          await nothingHeld();
        }
      }
    },

    async terminated() {
      for (const options of HOW) {
        for (let n = 0; n < 8; ++n) {
          const worker = start({ how: 'until terminated', options });
          const end = ended(worker);
          await new Promise((resolve) => worker.once('message', resolve));
          await setTimeout(n);
          await worker.terminate();
          await end;
        }
        await nothingHeld();
      }
    },

    async clonesTerminated() {
      for (let n = 0; n < 6; ++n) {
        const worker = start({ how: 'clone until terminated' });
        const end = ended(worker);
        await new Promise((resolve) => worker.once('message', resolve));
        await setTimeout(40 + 7 * n);
        await worker.terminate();
        await end;
      }
      await nothingHeld();
    },

    /** The process ends while three workers load: by process.exit(), or by an uncaught error. */
    async mainEnds(ending, us) {
      const workers = Array.from({ length: 3 }, (_, i) =>
        start({ how: 'until terminated', options: HOW[i % HOW.length] }),
      );
      await Promise.all(workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))));
      await setTimeout(Number(us) / 1000);
      if (ending === 'exit') process.exit(7);
      throw process.nextTick(() => {
        throw new Error('uncaught on purpose');
      });
    },

    async exitsInTheMiddle() {
      for (const options of HOW) {
        for (let n = 0; n < 44; n += 5) {
          const exits = ended(start({ how: 'exit in the middle', options, n }));
          const { code, error } = await ended(start({ how: 'throw in the middle', options, n }));
          assert.equal(code, 1);
          assert.match(error.message, /on purpose/);
          assert.equal((await exits).code, 0);
        }
        await nothingHeld();
      }
    },

    // A read that never comes back delays the end of a worker by a second at most, and its memory stays.
    async stalled() {
      const worker = start({ how: 'until terminated', options: own ?? { copier: 'stalled' } });
      const end = ended(worker);
      await new Promise((resolve) => worker.once('message', resolve));
      const held = () => nativeMetrics().hostBytes + nativeMetrics().deviceBytes;
      while (held() === 0) await setTimeout(5);
      await setTimeout(50);
      await worker.terminate();
      await end;
      assert.ok(held() > 0);
    },
  });
}
