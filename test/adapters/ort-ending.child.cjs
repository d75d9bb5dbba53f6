// Sessions of ONNX Runtime that end in every way: processes and workers that exit in the middle, and what is dropped.
// The models are the parent's (test/support/ort-models.ts).
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const ort = require('onnxruntime-node');
const { createSession } = require('fastsafetensors-node/ort');
const helpers = require('../support/child-helpers.cjs');
const { assert, main, moment, nothingHeld, SafeTensorsFileLoader, setImmediate, setTimeout } = helpers;

const models = isMainThread ? JSON.parse(process.argv[3]) : workerData.models;
const { weights, rows, width } = models;

const input = (scale = 1) =>
  new ort.Tensor('float32', new Float32Array(rows * width).fill(scale / width), [rows, width]);
const open = (model, options = {}) =>
  createSession(ort, model, {
    weights,
    ...options,
    sessionOptions: { intraOpNumThreads: 1, ...options.sessionOptions },
  });
const quietly = (promise) => promise.catch(() => {});

/** What is going on when the end comes. Each resolves once it is under way. */
const DOING = {
  async idle() {
    const session = await open(models.short);
    globalThis.kept = [session, await session.run({ x: input() }), await open(models.short)];
  },
  /** Many nodes: ends soon once it is told to. */
  async running() {
    const session = await open(models.deep);
    for (let i = 0; i < 3; ++i) quietly(session.run({ x: input(i) }));
  },
  /** One node, for seconds: cannot be told. */
  async stubborn() {
    const session = await createSession(ort, models.wide);
    quietly(
      session.run({
        x: new ort.Tensor('float32', new Float32Array(models.side ** 2).fill(1), [models.side, models.side]),
      }),
    );
  },
  async creating() {
    for (let i = 0; i < 2; ++i) quietly(open(models.slow));
  },
  /** The model itself is memory of JavaScript. */
  async creatingFromBytes() {
    const bytes = require('node:fs').readFileSync(models.slow);
    for (let i = 0; i < 2; ++i) quietly(open(bytes));
  },
  async releasing() {
    const sessions = await Promise.all(Array.from({ length: 4 }, () => open(models.deep)));
    for (const session of sessions) {
      quietly(session.run({ x: input() }));
      quietly(session.release());
    }
  },
};

if (!isMainThread) {
  const { how, ending, n } = workerData;
  (async () => {
    if (how === 'compute') {
      const session = await open(models.short);
      const { y } = await session.run({ x: input(n) });
      if (ending === 'release') await session.release();
      else globalThis.kept = [session, y];
      return parentPort.postMessage(y.data[0]);
    }
    await DOING[how]();
    parentPort.postMessage('started');
    await moment(n);
    if (ending === 'exit') process.exit(0);
    if (ending === 'throw') throw new Error('in a worker, on purpose');
    await setTimeout(60_000);
  })();
} else {
  const start = (data) => {
    const worker = new Worker(__filename, { workerData: { models, ...data }, stdout: true, stderr: true });
    const messages = [];
    let error;
    const started = new Promise((resolve) => {
      worker.on('message', (message) => {
        messages.push(message);
        resolve();
      });
    });
    const ended = new Promise((resolve) => {
      worker.on('error', (thrown) => {
        error = thrown;
      });
      worker.on('exit', (code) => resolve({ code, messages, error }));
    });
    return { worker, started, ended };
  };

  main({
    async processExit(_, how, n) {
      await DOING[how]();
      await moment(Number(n));
      console.log('ok');
      process.exit(0);
    },

    async exitCode(_, how) {
      await DOING[how]();
      await moment(33);
      process.exit(7);
    },

    async uncaught(_, how) {
      await DOING[how]();
      await moment(33);
      process.nextTick(() => {
        throw new Error('uncaught on purpose');
      });
      await setTimeout(60_000);
    },

    /** Nothing else keeps the process alive while it waits for a session; it would end in the middle, with code 0. */
    async goesOn() {
      for (let i = 0; i < 30; ++i) {
        const session = await open(models.short);
        await session.run({ x: input() });
        await session.release();
      }
    },

    /** Nothing is awaited or released: the process ends by itself when the work has. */
    async naturalEnd(_, how) {
      await DOING[how]();
    },

    async worker(_, how, ending, n) {
      const { worker, started, ended } = start({ how, ending, n: Number(n) });
      await started;
      if (ending === 'terminate') {
        await moment(Number(n));
        await worker.terminate();
      }
      const { code, error } = await ended;
      assert.equal(code, ending === 'exit' ? 0 : 1);
      if (ending === 'throw') assert.match(error.message, /on purpose/);
      else assert.equal(error, undefined);
      // The main thread goes on.
      const session = await open(models.short);
      assert.equal((await session.run({ x: input(3) })).y.data[0], models.expected * 3);
      await session.release();
      await nothingHeld();
    },

    /** The process exits while a worker computes. */
    async exitOverWorker(_, how) {
      const { started } = start({ how, ending: 'wait', n: 0 });
      await started;
      console.log('ok');
      process.exit(0);
    },

    async severalAtOnce() {
      for (const ending of ['release', 'keep']) {
        const workers = Array.from({ length: 3 }, (_, i) => start({ how: 'compute', ending, n: i + 1 }));
        const session = await open(models.short);
        const runs = Array.from({ length: 20 }, (_, i) => session.run({ x: input(i) }));
        for (const [i, { y }] of (await Promise.all(runs)).entries())
          assert.equal(y.data[0], Math.fround(models.expected * i));
        await session.release();
        for (const [i, { ended }] of workers.entries()) {
          assert.deepEqual(await ended, { code: 0, messages: [models.expected * (i + 1)], error: undefined });
        }
        await nothingHeld();
      }
    },

    /**
     * Buffers, sessions, tensors and outputs are dropped, closed or disposed in random orders; what is left must still
     * be whole.
     */
    async randomOrders(_, seed, rounds) {
      let state = Number(seed);
      const random = (below) => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return (state >>> 8) % below;
      };
      const once = async () => {
        const roots = new Map();
        const loader = new SafeTensorsFileLoader();
        await loader.addFilenames(weights);
        const buffer = await loader.copyFilesToDevice();
        await loader.close();
        const tensor = await buffer.getTensor('w');
        roots.set('buffer', buffer).set('tensor', tensor).set('array', tensor.data);
        for (let i = 0; i < 3; ++i) {
          const session = await open(models.short, {
            weights: buffer,
            sessionOptions: i === 1 ? { preferredOutputLocation: 'gpu-buffer' } : {},
          });
          roots.set(`session ${i}`, session);
          roots.set(`output ${i}`, (await session.run({ x: input() })).y);
          if (i === 2) roots.set('promise', quietly(session.run({ x: input() })));
        }
        while (roots.size > 0) {
          const names = [...roots.keys()];
          const name = names[random(names.length)];
          const object = roots.get(name);
          // Some are given back, some are just dropped.
          if (random(3) === 0) await (object.release ?? object.close ?? object.dispose)?.call(object);
          roots.delete(name);
          if (random(3) === 0) globalThis.gc();
          if (random(4) === 0) await setImmediate();
          for (const [left, found] of roots) {
            if (left.startsWith('session'))
              assert.equal((await found.run({ x: input(2) })).y.location.length > 2, true);
            if (left.startsWith('output')) assert.equal((await found.getData())[0], models.expected);
            if (left === 'array') assert.equal(found[0], models.first);
          }
        }
      };
      for (let round = 0; round < Number(rounds); ++round) await once();
      await nothingHeld();
    },
  });
}
