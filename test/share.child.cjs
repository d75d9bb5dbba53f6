// Tensors that threads share.
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { once } = require('node:events');
const helpers = require('./support/child-helpers.cjs');
const { assert, importTensors, loadFile, main, nothingHeld, nativeMetrics, setTimeout } = helpers;

/** Every byte of tensor i of writeModel() is i. */
async function checkBytes(tensors) {
  for (const [name, tensor] of tensors) {
    const bytes = Buffer.from(await tensor.toHost());
    assert.ok(bytes.length > 0 && bytes.equals(Buffer.alloc(bytes.length, Number(name.split('.')[1]))), name);
  }
}

if (!isMainThread) {
  const how = {
    async receive() {
      const [shares] = await once(parentPort, 'message');
      const tensors = await importTensors(shares);
      await checkBytes(tensors);
      if (workerData.keep) globalThis.kept = [...tensors.values()].map((tensor) => [tensor, tensor.data]);
      else for (const tensor of tensors.values()) tensor.dispose();
      parentPort.postMessage('received');
      if (workerData.stay) await setTimeout(60_000);
    },
    async copyUntilTerminated() {
      const [shares] = await once(parentPort, 'message');
      const [tensor] = (await importTensors(shares)).values();
      parentPort.postMessage('received');
      for (;;) {
        for (let i = 0; i < 50; ++i) tensor.clone(); // nobody waits for them
        await setTimeout(1);
      }
    },
    async send() {
      const tensors = Object.values(await loadFile(workerData.file, { mmap: false }));
      parentPort.postMessage(tensors.map((tensor) => tensor.share()));
      for (const tensor of tensors) tensor.dispose();
    },
    async sendUntilTerminated() {
      const tensors = Object.values(await loadFile(workerData.file, { mmap: false }));
      for (;;) {
        parentPort.postMessage([tensors[0].share()]);
        await setTimeout(1);
      }
    },
    async never() {
      parentPort.postMessage('started');
    },
  };
  how[workerData.how]();
} else {
  const file = helpers.writeModel('m', 12, 40_000);
  const start = (how, data = {}) => new Worker(__filename, { workerData: { how, file, ...data } });
  const load = async () => Object.values(await loadFile(file, { mmap: false }));
  const sendAndDispose = (tensors, workers) => {
    for (const worker of workers) worker.postMessage(tensors.map((tensor) => tensor.share()));
    for (const tensor of tensors) tensor.dispose();
  };
  const received = (worker) => once(worker, 'message');
  const ended = (worker) => once(worker, 'exit');

  main({
    async received() {
      const tensors = await load();
      const once = nativeMetrics().hostBytes;
      const workers = Array.from({ length: 4 }, () => start('receive'));
      sendAndDispose(tensors, workers);
      assert.equal(nativeMetrics().hostBytes, once);
      const ends = workers.map(ended);
      for (const [message] of await Promise.all(workers.map(received))) assert.equal(message, 'received');
      for (const [code] of await Promise.all(ends)) assert.equal(code, 0);
      await nothingHeld();
    },

    async fromWorker() {
      const worker = start('send');
      const [[shares], [code]] = await Promise.all([received(worker), ended(worker)]);
      assert.equal(code, 0);
      const tensors = await importTensors(shares);
      assert.equal(tensors.size, 12);
      await checkBytes(tensors);
      for (const tensor of tensors.values()) tensor.dispose();
      await nothingHeld();
    },

    async receiversEnd() {
      for (const stay of [false, true]) {
        const workers = Array.from({ length: 3 }, () => start('receive', { keep: true, stay }));
        sendAndDispose(await load(), workers);
        const ends = workers.map(ended);
        await Promise.all(workers.map(received));
        if (stay) assert.ok(nativeMetrics().hostBytes > 0);
        if (stay) for (const worker of workers) await worker.terminate();
        await Promise.all(ends);
        await nothingHeld();
      }
    },

    async neverReceived() {
      const worker = start('never');
      const end = ended(worker);
      const tensors = await load();
      const shares = tensors.map((tensor) => tensor.share());
      worker.postMessage(shares);
      for (const tensor of tensors) tensor.dispose();
      await end;
      assert.ok(nativeMetrics().hostBytes > 0);
      for (const share of shares) share.revoke();
      await nothingHeld();
    },

    async senderTerminated() {
      for (let n = 0; n < 6; ++n) {
        const worker = start('sendUntilTerminated');
        const shares = [];
        worker.on('message', (message) => shares.push(...message));
        await once(worker, 'message');
        await setTimeout(3 * n);
        await worker.terminate();
        await setTimeout(20);
        assert.ok(shares.length > 0);
        for (const share of shares) {
          const tensors = await importTensors([share]);
          await checkBytes(tensors);
          for (const tensor of tensors.values()) tensor.dispose();
        }
        shares.length = 0;
      }
      // What was posted last may have been lost with the worker; all of it was one allocation.
    },

    async readWhileTerminated() {
      for (let n = 0; n < 6; ++n) {
        const worker = start('copyUntilTerminated');
        sendAndDispose(await load(), [worker]);
        await received(worker);
        await setTimeout(5 * n);
        await worker.terminate();
        // Only the first tensor was kept; the others came with it, and are collected with the worker.
        await nothingHeld();
      }
    },
  });
}
