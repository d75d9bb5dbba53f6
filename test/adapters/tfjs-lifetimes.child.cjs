// Tensors and models of TensorFlow.js in processes and workers that end in every way; on tfjs-node where
// FASTSAFETENSORS_TFJS_NODE says where it is.
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const helpers = require('../support/child-helpers.cjs');
const { assert, fakeReader, main, moment, MOMENTS, nothingHeld, ParallelLoader, registerCopier } = helpers;
const { loadGraphModel, tfjs } = require('fastsafetensors-node/tfjs');

console.warn = () => {}; // tfjs praises tfjs-node
const tf = require(process.env.FASTSAFETENSORS_TFJS_NODE ?? '@tensorflow/tfjs');
registerCopier('slow', fakeReader({ msPerIo: 1, chunk: 4096, inFlight: 4 }));

const COUNT = 12;
const ELEMENTS = 512;
const fillOf = (name) => Buffer.alloc(4, Number(name.split('.')[1])).readFloatLE();

async function loadAll(files, options = {}) {
  const loader = new ParallelLoader({ files, framework: tfjs(tf), maxBatchBytes: 8192, ...options });
  const tensors = [];
  for await (const [name, tensor] of loader.iterateWeights()) {
    assert.ok(tensor.dataSync().every((value) => value === fillOf(name)));
    tensors.push(tensor);
  }
  return { loader, tensors };
}

/** A model that is the sum of its weights. */
function graphOf(names) {
  const float = { T: { type: 'DT_FLOAT' } };
  const constant = (name) => ({ name, op: 'Const', attr: { dtype: { type: 'DT_FLOAT' } } });
  const sum = { name: 'sum', op: 'AddN', input: names, attr: { ...float, N: { i: String(names.length) } } };
  return {
    format: 'graph-model',
    modelTopology: { node: [...names.map(constant), sum], versions: { producer: 1 } },
    weightsManifest: [{ paths: [], weights: names.map((name) => ({ name, shape: [ELEMENTS], dtype: 'float32' })) }],
  };
}

if (!isMainThread) {
  const { files, how, n } = workerData;
  (async () => {
    await tf.ready();
    if (how === 'in the middle') {
      loadAll(files, { copier: 'slow' });
      await moment(n);
      process.exit(0);
    }
    const { loader, tensors } = await loadAll(files);
    if (how === 'dispose') {
      tf.dispose(tensors);
      await loader.close();
    } else {
      globalThis.kept = [loader, tensors];
    }
    parentPort.postMessage('loaded');
    if (how === 'terminate') setInterval(() => {}, 1000);
  })();
} else {
  const files = helpers.writeModel('a', COUNT, ELEMENTS);
  const names = Array.from({ length: COUNT }, (_, i) => `a.${i}`);
  const ended = (data) =>
    new Promise((resolve) => {
      const worker = new Worker(__filename, { workerData: { files, ...data }, stdout: true, stderr: true });
      let message;
      let error;
      worker.on('message', (text) => {
        message = text;
        if (data.how === 'terminate') worker.terminate();
      });
      worker.on('error', (thrown) => {
        error = thrown;
      });
      worker.on('exit', (code) => resolve({ code, message, error }));
    });

  main({
    /** The loop runs out of work with tensors, a model and a loader alive. */
    async endsByItself() {
      await tf.ready();
      globalThis.kept = [await loadAll(files), await loadGraphModel(tf, graphOf(names), { weights: files })];
    },

    async exits() {
      await tf.ready();
      globalThis.kept = [await loadAll(files)];
      process.on('exit', () => console.log('ok'));
      process.exit(0);
    },

    async exitsInTheMiddle(n) {
      await tf.ready();
      process.on('exit', () => console.log('ok'));
      loadAll(files, { copier: 'slow' });
      await moment(Number(n) % MOMENTS);
      process.exit(0);
    },

    /** Whoever uses a model again and again: nothing grows. */
    async manyTimes() {
      await tf.ready();
      const before = tf.memory().numTensors;
      let rss = 0;
      for (let round = 0; round < 300; ++round) {
        const model = await loadGraphModel(tf, graphOf(names), { weights: files });
        const sum = model.execute({}, 'sum');
        assert.equal(sum.size, ELEMENTS);
        sum.dispose();
        model.dispose();
        assert.equal(tf.memory().numTensors, before);
        if (round === 100) {
          globalThis.gc();
          rss = process.memoryUsage().rss;
        }
      }
      await nothingHeld();
      assert.ok(process.memoryUsage().rss - rss < 48 * 2 ** 20, `${(process.memoryUsage().rss - rss) >> 20} MiB more`);
    },

    async workers() {
      for (const how of ['dispose', 'keep', 'terminate', 'dispose']) {
        const { code, message, error } = await ended({ how });
        assert.deepEqual({ message, error }, { message: 'loaded', error: undefined });
        assert.equal(code, how === 'terminate' ? 1 : 0);
        const mine = await loadAll(files);
        tf.dispose(mine.tensors);
        await mine.loader.close();
        await nothingHeld();
      }
      for (let n = 0; n < MOMENTS; n += 7) {
        const { code, error } = await ended({ how: 'in the middle', n });
        assert.deepEqual({ code, error }, { code: 0, error: undefined });
      }
      await nothingHeld();
    },
  });
}
